"""Options of env, agent and intervention: flags such as ``--env.epochs 5``, and their help."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from plastibench.cli.arguments import split_names
from plastibench.cli.run_options import REQUIRED, describe_option
from plastibench.config.errors import did_you_mean, raise_all
from plastibench.config.options import as_dict, build, describe_type, flag_name, has_option, options_of
from plastibench.config.registry import REGISTRIES

_WIDEST = 110  # characters per line of help

Tables = dict[str, dict[str, Any]]  # env, agent, intervention and run to option name to value


def read_option_flags(args: argparse.Namespace, tables: Tables) -> None:
    """Put the values of ``--env.epochs 5`` and the like into the tables of env, agent and intervention.

    Args:
        args: What :meth:`CommandParser.parse_words` returned.
        tables: The tables to write into.

    Raises:
        UserError: A flag is unknown or has no value.
    """
    rest, wrong = list(args.option_flags), []
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        part, dot, option = flag.removeprefix("--").partition(".")
        if not (flag.startswith("--") and dot and part in args.parser.components):
            hint = _suggestion(flag, tables, args.parser.flags)
            wrong.append(f"unknown argument '{flag}'{hint} ({args.parser.prog} --help)")
            if flag.startswith("--") and not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)  # its value
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                wrong.append(f"{flag} needs a value")
                continue
            value = rest.pop(0)
        if (part, option) == ("intervention", "roles"):  # every intervention has it, so it is an option of the run
            part = "run"
        tables[part][option] = value
    raise_all(wrong)


def _suggestion(flag: str, tables: Tables, flags: Iterable[str]) -> str:
    """Suggest an option without its component, as ``--epochs``, or else a flag that is spelled alike."""
    option = flag.removeprefix("--")
    for part in set(tables) & set(REGISTRIES):
        for name in split_names(tables[part].get("name", "")):
            if name in REGISTRIES[part] and has_option(REGISTRIES[part].declaration(name), option):
                return f"; did you mean '--{part}.{option}'?"
    return did_you_mean(flag, flags)


def option_help(part: str, name: str) -> str:
    """Help of all options of an env, agent or intervention, with the defaults of this registered name."""
    entry, cls = REGISTRIES[part][name], REGISTRIES[part].declaration(name)
    defaults = as_dict(build(cls, entry.defaults, f"{part} {name}"))
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    lines = [textwrap.fill(f"{part} {name}: {entry.summary}", width, subsequent_indent="  ")]
    for option, field in options_of(cls).items():
        is_required = field.metadata.get("required") and option not in entry.defaults
        text = describe_option(field, REQUIRED if is_required else defaults.get(option, "none"))
        lines.append(f"  --{part}.{flag_name(option)} {describe_type(cls, option)}")
        lines.append(textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)
