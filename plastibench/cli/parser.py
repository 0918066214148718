"""The argument parser of every command: errors become ``UserError``, and each default is shown once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from plastibench.config.errors import UserError, did_you_mean


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults as ``(default: X)``, and keeps the line breaks of descriptions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_help_position": 30, **kwargs})

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
    """

    components: tuple[str, ...] = ()
    intermixed = False

    def __init__(self, **kwargs: Any) -> None:
        # "resolve" lets a command replace --help.
        super().__init__(**{"formatter_class": HelpFormatter, "conflict_handler": "resolve", **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a :class:`UserError`."""
        raise UserError(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is not one of an argument's choices, and suggest the one that is spelled alike."""
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), map(str, action.choices))
            name = action.option_strings[0] if action.option_strings else action.metavar or action.dest.upper()
            raise UserError(f"{name}: unknown '{value}'{hint} (choose from {', '.join(map(str, action.choices))})")

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the command.

        Returns:
            The arguments, plus ``words`` as given, ``option_flags`` (flags of components and unknown words), and
            ``parser``, this object.

        Raises:
            UserError: An argument is unknown, or a value is missing or invalid.
        """
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
