"""Entry point of the command line: choose a command, run it, and report errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from plastibench import __version__
from plastibench.cli.parser import CommandParser
from plastibench.config.errors import RunError, UserError, did_you_mean
from plastibench.utils.torchrun import is_first_process, launched_processes

GROUPS = {
    "run experiments": {
        "run": "run one or more interventions on an env and compare them",
        "resume": "continue interrupted runs",
        "sweep": "run a grid of experiments from a TOML file in parallel",
        "survey": "run every intervention on one env; compare benefit and cost in a table",
    },
    "compare results": {
        "leaderboard": "rank methods over all finished runs",
        "runs": "list, tag, remove and archive runs; show their progress",
        "plot": "plot finished runs: curves, trade-offs, heat maps, the paper's figures",
    },
    "inspect": {
        "diagnose": "measure the plasticity of a network, layer by layer",
        "apply": "apply an intervention to a trained network once, before fine-tuning",
        "bench": "measure the speed of updates, stacked runs, interventions, data and RL",
        "list": "list envs, agents, interventions and metrics",
        "info": "show versions, devices, datasets and runs, or the options of an env, agent or intervention",
        "completion": "print a script that completes commands, flags and names in a shell",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}
_DEPRECATED = {"figures": "plot"}  # accepted for one version
_PARALLEL = ("run", "resume")  # commands that torchrun may start in several processes
MODULES = {name: f"plastibench.cli.{'list_' if name == 'list' else name}" for name in COMMANDS}

_EXAMPLES = """\
examples:
  plastibench run cl-digits --agent vit-nano --intervention none,reset,rnr
  plastibench run cl-cifar100 --agent vit-tiny --intervention rnr --seed 0..2
  plastibench run relabel-digits --agent mlp --intervention rnr --intervention.quantile 0.2
  plastibench leaderboard
  tensorboard --logdir runs

help on one command: plastibench COMMAND --help"""


def main(words: Sequence[str] | None = None) -> None:
    """Run a command and exit with status 0 (success), 1 (run failed), 2 (invalid input) or 130 (stopped on request)."""
    words = list(sys.argv[1:] if words is None else words)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot encode Greek letters shows question marks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with _only_first_prints():
            status = _dispatch(words)
        sys.exit(status)
    except UserError as error:
        _report(error)
        sys.exit(2)
    except RunError as error:
        _report(error)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has exited, as in `plastibench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("plastibench: stopped", file=sys.stderr)
        sys.exit(130)
    except (Exception, SystemExit) as error:
        from plastibench.config.own_code import describe, passed_own_code

        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _report(UserError(f"the path {str(error.filename)[:60]}… is too long; choose a shorter one"))
            sys.exit(2)
        if not passed_own_code(error):
            raise
        print(f"plastibench: {describe(error)}", file=sys.stderr)  # an error of a plugin, before any run
        sys.exit(2)


@contextlib.contextmanager
def _only_first_prints() -> Iterator[None]:
    """Discard the output of all processes but the first that torchrun has started, except for tracebacks."""
    with contextlib.ExitStack() as stack:
        if not is_first_process():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _report(error: Exception) -> None:
    if is_first_process():  # all processes raise the same error
        print(f"plastibench: {' '.join(str(error).split())}", file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    command = words[0] if words else ""
    if command == "__complete":  # the scripts of `plastibench completion` ask
        from plastibench.cli.completion import candidates

        print("\n".join(candidates(words[1:], MODULES)))
        return 0
    if command in _DEPRECATED:
        new = _DEPRECATED[command]
        print(
            f"plastibench: '{command}' is now '{new}'; the old name will be removed in the next version",
            file=sys.stderr,
        )
        command = new
    if command not in COMMANDS:
        return _top_level(words)
    if launched_processes() > 1 and command not in _PARALLEL:
        raise UserError(f"plastibench {command} uses one process; run it without torchrun")
    module = importlib.import_module(MODULES[command])
    summary = COMMANDS[command]
    parser = CommandParser(prog=f"plastibench {command}", description=f"{summary[0].upper()}{summary[1:]}.")
    module.configure(parser)
    return int(module.execute(parser.parse_words(words[1:])))


def _top_level(words: Sequence[str]) -> int:
    """Handle ``--help``, ``--version`` and unknown commands."""
    width = max(map(len, COMMANDS))
    commands = "\n\n".join(
        "\n".join([f"{group}:", *(f"  {name:{width}}  {summary}" for name, summary in members.items())])
        for group, members in GROUPS.items()
    )
    parser = CommandParser(
        prog="plastibench",
        usage="plastibench COMMAND ...",
        description=f"Gym, benchmark and toolbox for plasticity loss.\n\n{commands}",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"plastibench {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    command = parser.parse_known_args(list(words))[0].command
    if command is None:
        raise UserError(f"no command given; choose from {', '.join(COMMANDS)}")
    raise UserError(f"unknown command '{command}'{did_you_mean(command, COMMANDS)} (commands: {', '.join(COMMANDS)})")
