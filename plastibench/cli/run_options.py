"""Flags of ``RunOptions``: names, types, help and defaults come from its fields."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from plastibench.cli.parser import CommandParser
from plastibench.config.options import describe_type, flag_name, options_of
from plastibench.config.spec import RunOptions

REQUIRED = "required"  # instead of a default
_METAVARS = {"int": "N", "float": "X", "text": "NAME", "text,…": "NAMES"}


def add_run_options(
    parser: CommandParser, *, only: Collection[str] | None = None, defaults: Mapping[str, str] | None = None
) -> None:
    """Add a flag for each option of a run.

    A flag that is not given leaves ``None`` in the namespace, so that a spec file can supply the value.

    Args:
        parser: The parser of a command.
        only: Names of options to add; default: all.
        defaults: Defaults of this command that differ from those of ``RunOptions``.
    """
    group = parser.add_argument_group("run options")
    for name, field in options_of(RunOptions).items():
        if only is not None and name not in only:
            continue
        kind = describe_type(RunOptions, name)
        value: dict[str, Any] = {"metavar": _METAVARS.get(kind, kind)}
        if kind == "bool":
            value = {"action": "store_const", "const": True}
        default = (defaults or {}).get(name)
        shown = None if kind == "bool" else default or field.default
        help = describe_option(field, shown).replace("%", "%%")
        group.add_argument(f"--{flag_name(name)}", dest=name, default=default, help=help, **value)


def given_run_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were given on the command line, or that the command sets."""
    values = {name: getattr(args, name, None) for name in options_of(RunOptions)}
    return {name: value for name, value in values.items() if value is not None}


def describe_option(field: dataclasses.Field[Any], default: Any) -> str:
    """The help of an option with its range and default: ``hidden units (default: 64; at least 1)``.

    If the option has no default value, a default stated in the help text, such as ``(default: all)``, is kept.
    """
    text, _, stated = str(field.metadata.get("help", "")).partition(" (default: ")
    if default is REQUIRED:
        notes = [f"{REQUIRED}, for example {field.metadata['required']}"]
    elif default not in (None, "none"):
        notes = [f"default: {_shown(default)}"]
    elif stated:
        notes = [f"default: {stated.removesuffix(')')}"]
    else:
        notes = [] if default is None or "default)" in text else ["default: none"]
    low, high = (None if (end := field.metadata.get(key)) is None else f"{end:,}" for key in ("low", "high"))
    if low is not None and high is not None:
        notes.append(f"{low} to {high}")
    elif low is not None and low != "0":
        notes.append(f"at least {low}")
    elif high is not None:
        notes.append(f"at most {high}")
    return f"{text} ({'; '.join(notes)})" if notes else text


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value == "" else str(value)
