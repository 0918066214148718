"""What several commands share: names, options as flags, plugins and places."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean

KINDS = {"envs": registry.envs, "agents": registry.agents, "interventions": registry.interventions}

RUN_OPTIONS = (
    *("seed", "every", "roles", "until", "offline_updates", "checkpoint_memory"),
    *("representative", "device", "deterministic", "metrics"),
)
_BOARD_AT_ONCE = 1000  # results that are read and written within about two seconds
RUN_FLAGS = [
    f"--{name.replace('_', '-')}"
    for name in (
        *("agent", "intervention", "spec", "plugin", *RUN_OPTIONS),
        *("jobs", "threads", "quiet", "runs-dir", "data-dir", "help"),
    )
]


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where results and data are."""
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where results go (default runs)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("PLASTIBENCH_DATA", "data")),
        help="where data sets are (default data, or $PLASTIBENCH_DATA)",
    )


def read_option_flags(arguments: Sequence[str], tables: dict[str, dict[str, Any]]) -> None:
    """Put ``--env.epochs 5`` and the like into the tables of env, agent and intervention."""
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        part, dot, option = flag.removeprefix("--").partition(".")
        if not (flag.startswith("--") and dot and part in tables):
            raise UserError(f"unknown argument '{flag}'{_meant(flag, tables)} (plastibench run --help)")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag} needs a value")
            value = rest.pop(0)
        if (part, option) == ("intervention", "roles"):  # of every intervention, so it belongs to the run
            part = "run"
        tables[part][option] = value


def _meant(flag: str, tables: dict[str, dict[str, Any]]) -> str:
    """What an unknown argument may stand for: an option without its part, or an argument that looks like it."""
    from plastibench.config.options import field_name, options_of

    for part in tables:
        kinds = KINDS.get(f"{part}s")
        for name in listed(tables[part].get("name", "")) if kinds is not None else []:
            if field_name(flag.removeprefix("--")) in options_of(kinds[name].load()):  # type: ignore[index]
                return f"; did you mean '--{part}.{flag.removeprefix('--')}'?"
    return did_you_mean(flag, RUN_FLAGS)


def update_board(runs_dir: Path, drawn: bool = False) -> None:
    """Bring TensorBoard's leaderboard up to date after runs have ended, where that takes no more than a moment.

    Whatever goes wrong is told in a line, and does not make a run fail that has ended well.

    Args:
        runs_dir: Where results are.
        drawn: With pictures, if matplotlib is there.
    """
    from plastibench.leaderboard import load
    from plastibench.results.files import find_results

    try:
        if 0 < len(find_results(runs_dir)) <= _BOARD_AT_ONCE:
            with contextlib.redirect_stderr(io.StringIO()):  # `leaderboard` names those that cannot be read
                found = load(runs_dir)
            write_board(runs_dir, found, drawn)
    except Exception as error:
        reason = " ".join(str(error).split())
        print(f"plastibench: TensorBoard's leaderboard is not up to date: {reason}", file=sys.stderr)


def write_board(runs_dir: Path, found: Sequence[Any], drawn: bool) -> Path:
    """Write TensorBoard's leaderboard of some results, with pictures if matplotlib is there."""
    from plastibench.leaderboard import tensorboard
    from plastibench.leaderboard.standings import standings

    shown = standings(found)
    pictures = None
    if drawn and importlib.util.find_spec("matplotlib"):
        from plastibench.plotting.leaderboard_plots import pictures as draw

        pictures = {what: png for of_contest in draw(shown).values() for what, png in of_contest}
    return tensorboard.write(runs_dir, shown, pictures)


def must_have_folder(path: Path | None) -> None:
    """See that a file can be written, before the work whose outcome it is to hold.

    Raises:
        UserError: Its folder does not exist, or it is a folder itself.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}")


def listed(names: str | list[str]) -> list[str]:
    """Names from ``a,b`` or from a list, each once."""
    listed = names.split(",") if isinstance(names, str) else list(names)
    found = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if names != "" and not found:
        raise UserError(f"'{names}' names no intervention")
    return found


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if count(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be at least 1")
    return int(text)


def import_plugin(plugin: str) -> None:
    """Import a user's own module or file, which registers what it brings."""
    if plugin.endswith(".py") and not Path(plugin).is_file():
        raise UserError(f"--plugin {plugin}: no such file")
    try:
        if plugin.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(plugin).stem, plugin)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up there
            spec.loader.exec_module(module)
        else:
            importlib.import_module(plugin)
    except (Exception, SystemExit) as error:  # whatever is wrong in it is the user's to mend: name it and its kind
        raise UserError(f"--plugin {plugin} does not load: {type(error).__name__}: {error}") from error
