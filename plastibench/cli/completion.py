"""The command ``plastibench completion``: shell completion of commands, flags and names."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plastibench.cli.arguments import DEFAULT_RUNS_DIR
from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError
from plastibench.config.options import flag_name, options_of
from plastibench.config.registry import REGISTRIES
from plastibench.config.spec import PARTS

ASK = "__complete"  # the hidden command that the scripts call: plastibench __complete WORDS…

# Each script passes the command line up to the cursor, and completes file names if there are no candidates.
SCRIPTS = {
    "bash": f"""\
_plastibench() {{
    local IFS=$'\\n'
    COMPREPLY=($(plastibench {ASK} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null))
}}
complete -o default -F _plastibench plastibench
""",
    "zsh": f"""\
#compdef plastibench
_plastibench() {{
    local -a found
    found=("${{(@f)$(plastibench {ASK} "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}}
compdef _plastibench plastibench
""",
    "fish": f"""\
function __plastibench_complete
    set -l words (commandline -opc) (commandline -ct)
    plastibench {ASK} $words[2..-1] 2>/dev/null
end
complete -c plastibench -a '(__plastibench_complete)'
""",
}
_SET_UP = """\
set up:
  bash  echo 'eval "$(plastibench completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(plastibench completion zsh)"' >> ~/.zshrc      (after compinit)
  fish  plastibench completion fish > ~/.config/fish/completions/plastibench.fish"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.epilog = _SET_UP
    parser.add_argument("shell", choices=list(SCRIPTS), help="the shell")


def execute(args: argparse.Namespace) -> int:
    """Print the completion script."""
    print(SCRIPTS[args.shell], end="")
    return 0


def candidates(words: Sequence[str], modules: Mapping[str, str]) -> list[str]:
    """Return completions of the last word, without importing PyTorch; empty if any file or value is allowed.

    Args:
        words: The words after ``plastibench`` up to the cursor; the last one may be empty.
        modules: The module of each command.
    """
    *before, current = words or [""]
    if not before:
        return _matching(current, [*modules, "--help", "--version"])
    command, *given = before
    if command not in modules:
        return []
    parser = CommandParser(prog=command)
    importlib.import_module(modules[command]).configure(parser)
    if parser.parts and not given and not current.startswith("-"):
        return _matching(current, parser.parts)
    if given and given[0] in parser.parts:
        parser, given = parser.part_of(given)
    if current.startswith("-"):
        return _matching(current, [*parser.flags, *_option_flags(parser, given)])
    flag = parser._option_string_actions.get(given[-1]) if given else None
    if flag is not None and flag.nargs != 0:
        return _matching_last(current, _values(flag))
    if given and given[-1].startswith("--") and flag is None:
        return []  # the value of an option of a component
    positional = [action for action in parser._actions if not action.option_strings]
    place = min(len(given), len(positional) - 1)  # the last one takes all further words
    return _matching(current, _values(positional[place])) if positional else []


def _values(action: argparse.Action) -> Iterable[str]:
    """Return the possible values of an argument; none if they are unknown."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest in REGISTRIES:
        return REGISTRIES[action.dest].all()
    if action.dest in ("ids", "run", "target"):  # ids of runs
        return [path.parent.name for path in DEFAULT_RUNS_DIR.glob("*/spec.toml")]
    if action.dest == "file":  # a sweep file
        folder = Path(__file__).parents[1] / "sweeps"
        return sorted({path.stem.partition("-")[0] for path in folder.glob("*-*.toml")})
    return []


def _option_flags(parser: CommandParser, given: Sequence[str]) -> list[str]:
    """Return flags such as ``--env.epochs`` of the components that are named by the preceding words."""
    found: list[str] = []
    for part in set(parser.components) & set(PARTS):
        names = [name for word in given for name in word.split(",")]
        for name in names:
            with contextlib.suppress(UserError):
                known = REGISTRIES[part].declaration(name) if name else None
                found += [f"--{part}.{flag_name(option)}" for option in options_of(known)] if known else []
    return list(dict.fromkeys(found))


def _matching(current: str, known: Iterable[str]) -> list[str]:
    return [each for each in known if each.startswith(current)]


def _matching_last(current: str, known: Iterable[str]) -> list[str]:
    """Complete the last name of a list such as ``none,re``."""
    before, comma, last = current.rpartition(",")
    return [f"{before}{comma}{each}" for each in _matching(last, known)]
