"""Arguments that several commands take: execution, paths, and the types of values."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError

ONE_PER_CORE = os.cpu_count() or 1
DEFAULT_RUNS_DIR = Path("runs")
OTHER_RUNS_DIR = ", or name another with --runs-dir"
_THREADS = "CPU threads (default: 1 for small networks, all cores for large ones)"
_THREADS_PER_PROCESS = "CPU threads per process (default: 1 for small networks, cores / jobs for large ones)"


def add_execution(parser: CommandParser, *, jobs: int | None = None, force: bool = False) -> None:
    """Add ``--threads``, ``--quiet`` and ``--plugin``.

    Args:
        parser: The parser of a command.
        jobs: Default number of processes; also adds ``--jobs``.
        force: Also add ``--force``.
    """
    group = parser.add_argument_group("execution")
    if jobs is not None:
        default = " (default: one per core)" if jobs == ONE_PER_CORE != 1 else ""
        group.add_argument("--jobs", type=positive, default=jobs, metavar="N", help=f"parallel processes{default}")
    add_threads(group, _THREADS if jobs is None else _THREADS_PER_PROCESS)
    group.add_argument("--quiet", action="store_true", help="show no progress")
    if force:
        help = "repeat runs that are complete, and start interrupted ones again; their files are replaced"
        group.add_argument("--force", action="store_true", help=help)
    add_plugin(group)


def add_threads(group: argparse._ArgumentGroup, help: str = _THREADS) -> None:
    """Add ``--threads``."""
    group.add_argument("--threads", type=count, default=0, metavar="N", help=help)


def add_plugin(group: argparse._ArgumentGroup) -> None:
    """Add ``--plugin``, which may be repeated."""
    help = "import a module or .py file that registers envs, agents or interventions; may be repeated"
    group.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=help)


def add_paths(parser: CommandParser, *, runs: bool = True, data: bool = True) -> None:
    """Add ``--runs-dir`` and ``--data-dir``."""
    group = parser.add_argument_group("paths")
    if runs:
        group.add_argument("--runs-dir", type=Path, default=DEFAULT_RUNS_DIR, metavar="DIR", help="folder of all runs")
    if data:
        default = Path(os.environ.get("PLASTIBENCH_DATA", "data"))
        help = "folder of datasets (default: data, or $PLASTIBENCH_DATA)"
        group.add_argument("--data-dir", type=Path, default=default, metavar="DIR", help=help)


def count(text: str) -> int:
    """Parse an integer of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a non-negative integer")
    return int(text)


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if count(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be at least 1")
    return int(text)


def split_names(names: str | list[str]) -> list[str]:
    """Split ``a,b`` into names, each once; a list is taken as it is.

    Raises:
        UserError: The list contains no name.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    found = list(dict.fromkeys(name.strip() for name in parts if name.strip()))
    if names != "" and not found:
        raise UserError(f"'{names}' contains no name")
    return found


def check_output_file(path: Path | None) -> None:
    """Check that a file can be created, before the work that it is meant for begins.

    Raises:
        UserError: Its folder does not exist, or the path is a folder.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}")
