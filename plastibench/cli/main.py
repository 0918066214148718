"""The command line: which commands there are, and how mistakes and failures are told."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from plastibench import __version__
from plastibench.cli import diagnose, figures, many, run, show
from plastibench.config.errors import RunError, UserError, did_you_mean

_EXAMPLES = """\
examples:
  plastibench run cl-digits --agent vit-nano --intervention none,reset,rnr
  plastibench run cl-cifar100 --agent vit-tiny --intervention rnr --seed 0..2
  plastibench run relabel-digits --agent mlp --intervention rnr --intervention.quantile 0.2
  plastibench run cl-digits --agent vit-nano --intervention rnr --help
  plastibench leaderboard
  tensorboard --logdir runs"""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into ours."""
        found = re.search(r"argument command: invalid choice: '([^']*)'", message)
        if found:
            message = f"no command '{found.group(1)}'{did_you_mean(found.group(1), COMMANDS)} ({', '.join(COMMANDS)})"
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 the run failed, 2 the input is wrong, 130 stopped on request."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal without Greek letters shows question marks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        sys.exit(_dispatch(arguments))
    except UserError as error:
        _complain(error)
        sys.exit(2)
    except RunError as error:
        _complain(error)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("plastibench: stopped", file=sys.stderr)
        sys.exit(130)


def _complain(error: Exception) -> None:
    print(f"plastibench: {' '.join(str(error).split())}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    parser = Parser(
        prog="plastibench",
        description="Gym, benchmark and toolbox for plasticity loss.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plastibench {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (add, help_line) in COMMANDS.items():
        add(commands.add_parser(name, help=help_line, description=help_line, add_help=name != "run"))
    kept, options = _without_options(arguments)
    known, rest = parser.parse_known_args(kept)
    rest = options + rest
    if rest and known.command not in ("run", "bench", "survey", "diagnose"):
        raise UserError(f"unknown argument '{rest[0]}' (plastibench {known.command} --help)")
    known.rest, known.arguments = rest, arguments
    return int(known.do(known))


def _without_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments, and apart from them ``--env.epochs 5`` and the like: argparse would take the 5 for the env."""
    kept: list[str] = []
    options: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--[a-z]+\.", word):
            kept.append(word)
            continue
        options.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            options.append(rest.pop(0))
    return kept, options


COMMANDS = {
    "run": (run.add_run, "run interventions on a task stream, and compare them"),
    "sweep": (many.add_sweep, "work through a grid of runs with several processes"),
    "survey": (many.add_survey, "every intervention on one scenario: what it brings, and what it costs"),
    "resume": (run.add_resume, "continue an interrupted run"),
    "list": (show.add_list, "list envs, agents, interventions and metrics"),
    "info": (show.add_info, "show versions, devices and data found"),
    "figures": (figures.add, "draw finished runs: curves, trade-offs, heat maps, and the paper's figures"),
    "bench": (show.add_bench, "time the harness against a plain PyTorch loop, and an intervention"),
    "leaderboard": (show.add_leaderboard, "compare all finished runs"),
    "diagnose": (diagnose.add, "examine the plasticity of a network, layer by layer"),
}
