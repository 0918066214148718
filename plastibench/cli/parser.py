"""The argument parser of every command: errors become ``UserError``, and each default is shown once."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from plastibench.config.errors import UserError, did_you_mean


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults as ``(default: X)``, and keeps the line breaks of descriptions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_help_position": 30, **kwargs})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap lines that are too long below their last column; a command stays in one line, for copying."""
        lines = []
        for line in text.splitlines():
            columns = re.match(r"\s*(\S+( \S+)*\s{2,})*", line)
            hang = columns.end() if columns else 0
            is_command = line.lstrip().startswith("plastibench ")
            lines += [line] if is_command else textwrap.wrap(line, width, subsequent_indent=" " * hang) or [""]
        return "\n".join(indent + line for line in lines)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default in (argparse.SUPPRESS, False, [], "")
        if not action.help or hidden or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """An argument parser of one command.

    Attributes:
        components: The parts of a run whose options the command takes: ``("agent",)`` for ``--agent.lr 0.1``.
        intermixed: Whether flags may appear between positional arguments.
        parts: Parsers of the command's parts, by name, if its first word chooses one: ``bench train``.
        default_part: The part that is meant if there is none; for commands that had no parts before.
        parent: The parser of the command, if this one is of a part.
    """

    components: tuple[str, ...] = ()
    intermixed = False
    default_part = ""
    parent: CommandParser | None = None

    def __init__(self, **kwargs: Any) -> None:
        self.parts: dict[str, CommandParser] = {}
        # "resolve" lets a command replace --help.
        super().__init__(**{"formatter_class": HelpFormatter, "conflict_handler": "resolve", **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a :class:`UserError`."""
        raise UserError(message)

    def add_part(self, name: str, summary: str) -> CommandParser:
        """Add a part with its own arguments; the help of the command lists it."""
        part = CommandParser(prog=f"{self.prog} {name}", description=f"{summary[0].upper()}{summary[1:]}.")
        part.parent = self
        self.parts[name] = part
        listed = "\n".join(f"  {each:10} {parser.description}" for each, parser in self.parts.items())
        self.epilog = f"parts:\n{listed}\n\nhelp on one part: {self.prog} PART --help"
        return part

    def part_of(self, words: Sequence[str]) -> tuple[CommandParser, list[str]]:
        """The parser of these words and the words that are left: of a part, or this one.

        Raises:
            UserError: There is no such part.
        """
        command = self.prog.partition(" ")[2]
        if not self.parts or (words and words[0] in ("-h", "--help")):
            return self, [*words]
        if words and words[0] in self.parts:
            return self.parts[words[0]], [*words[1:]]
        if not self.default_part or (words and _is_like(words[0], self.parts)):
            given = f"unknown part '{words[0]}'{did_you_mean(words[0], self.parts)}" if words else "no part given"
            raise UserError(f"{command}: {given} (choose from {', '.join(self.parts)})")
        print(
            f"plastibench: '{command} …' is now '{command} {self.default_part} …'; the old form will be removed in the "
            "next version",
            file=sys.stderr,
        )
        return self.parts[self.default_part], [*words]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Reject a value that is not among an argument's choices, and suggest the closest one."""
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), map(str, action.choices))
            name = action.option_strings[0] if action.option_strings else action.metavar or action.dest.upper()
            raise UserError(f"{name}: unknown '{value}'{hint} (choose from {', '.join(map(str, action.choices))})")

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the command.

        Returns:
            The arguments, plus ``words`` as given, ``option_flags`` (flags of components and unknown words), and
            ``parser``, this object or that of the part, whose name is ``part``.

        Raises:
            UserError: An argument is unknown, or a value is missing or invalid.
        """
        parser, rest = self.part_of(words)
        if parser is not self:
            args = parser.parse_words(rest)
            args.part = next(name for name, part in self.parts.items() if part is parser)
            return args
        plain, option_flags = _split_option_flags(words)
        args, unknown = (self.parse_known_intermixed_args if self.intermixed else self.parse_known_args)(plain)
        if not self.components and (unknown := [*option_flags, *unknown]):
            hint = did_you_mean(unknown[0], self.flags) if unknown[0].startswith("-") else ""
            raise UserError(f"unknown argument '{unknown[0]}'{hint} ({self.prog} --help)")
        args.words, args.option_flags, args.parser = list(words), [*option_flags, *unknown], self
        return args

    @property
    def flags(self) -> list[str]:
        """All flags that the parser knows, such as ``--seed``."""
        return list(self._option_string_actions)


def _is_like(word: str, known: Iterable[str]) -> bool:
    """Whether a word is probably one of the known ones with a typing error, or the beginning of one."""
    return bool(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7))


def _split_option_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate ``--env.epochs 5`` and the like: argparse would take the 5 for a positional argument."""
    plain: list[str] = []
    option_flags: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--[a-z]+\.", word):
            plain.append(word)
            continue
        option_flags.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            option_flags.append(rest.pop(0))
    return plain, option_flags
