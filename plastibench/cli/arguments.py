"""Arguments that several commands take: execution, paths, and the types of values."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError
from plastibench.results.tags import check_tag
from plastibench.training.trackers.tracker import parse_names

AUTO = 0  # value of --jobs auto
_MOST_THREADS = 1_024
_MOST_JOBS = 1_024
DEFAULT_RUNS_DIR = Path("runs")
OTHER_RUNS_DIR = ", or set another folder with --runs-dir"
_THREADS = "CPU threads (default: 1 for small networks, all cores for large ones)"
_THREADS_PER_PROCESS = "CPU threads per process (default: 1 for small networks, cores / jobs for large ones)"


def add_execution(parser: CommandParser, *, jobs: bool = False) -> None:
    """Add ``--threads``, ``--quiet``, ``--log`` and ``--plugin``; for several runs also ``--jobs``, ``--force`` etc."""
    group = parser.add_argument_group("execution")
    if jobs:
        group.add_argument(
            "--jobs",
            type=job_count,
            default=AUTO,
            metavar="N",
            help="number of parallel runs, each in its own process; auto: one per core or GPU, fewer if memory is "
            "scarce (default: auto)",
        )
        tag = "add this tag to the runs (see: plastibench runs); may be repeated"
        group.add_argument("--tag", type=tag_of, action="append", default=[], metavar="TAG", help=tag)
        group.add_argument(
            "--dry-run",
            action="store_true",
            help="estimate updates, interventions, time, memory and disk space, without starting any run",
        )
    add_threads(group, _THREADS if not jobs else _THREADS_PER_PROCESS)
    help = "RL: record one episode of the first, every Nth and the last evaluation as GIFs in the run's folder"
    group.add_argument("--videos", type=integer(), default=0, metavar="N", help=f"{help} (default: none)")
    group.add_argument("--quiet", action="store_true", help="show no progress")
    help = "also send metrics to trackers: wandb, mlflow, trackio (TensorBoard event files are always written)"
    group.add_argument("--log", type=trackers, default=[], metavar="NAMES", help=help)
    if jobs:
        help = "rerun complete runs and restart interrupted runs from the beginning; replaces their files"
        group.add_argument("--force", action="store_true", help=help)
    add_wide(group)
    add_plugin(group)


def add_threads(group: argparse._ArgumentGroup, help: str = _THREADS) -> None:
    """Add ``--threads``."""
    group.add_argument("--threads", type=integer(high=_MOST_THREADS), default=0, metavar="N", help=help)


def add_plugin(group: argparse._ArgumentGroup) -> None:
    """Add ``--plugin``, which may be repeated."""
    help = "import a module or .py file that registers envs, agents or interventions; may be repeated"
    group.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=help)


def add_paths(parser: CommandParser, *, runs: bool = True, data: bool = True, url: bool = False) -> None:
    """Add ``--runs-dir`` and ``--data-dir``; ``url``: the former may be a URL."""
    group = parser.add_argument_group("paths")
    if runs:
        help = "folder of all runs" + (", or the URL of a copy of it, such as s3://bucket/runs" if url else "")
        kind = _path_or_url if url else _path
        group.add_argument("--runs-dir", type=kind, default=DEFAULT_RUNS_DIR, metavar="DIR", help=help)
    if data:
        default = Path(os.environ.get("PLASTIBENCH_DATA", "data"))
        help = "folder of datasets (default: data, or $PLASTIBENCH_DATA)"
        group.add_argument("--data-dir", type=Path, default=default, metavar="DIR", help=help)


def add_wide(group: argparse._ArgumentGroup) -> None:
    """Add ``--wide``."""
    help = "show all columns of tables (default: those that fit the terminal or $COLUMNS; all if output is piped)"
    group.add_argument("--wide", action="store_true", help=help)


def add_reference(group: CommandParser | argparse._ArgumentGroup) -> None:
    """Add ``--with-reference``."""
    help = "include the reference results that plastibench ships (folders that contain a file REFERENCE)"
    group.add_argument("--with-reference", action="store_true", help=help)


def _path(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"'{text}' is a URL; only leaderboard reads URLs; expected a folder")
    return Path(text)


def _path_or_url(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def integer(low: int = 1, high: int = 1_000_000) -> Callable[[str], int]:
    """Make a parser of integers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,9}", text) and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"'{text[:20]}' is not an integer from {low:,} to {high:,}")
        return int(text)

    return parse


def tag_of(text: str) -> str:
    """Parse a tag of a run."""
    try:
        return check_tag(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def trackers(text: str) -> tuple[str, ...]:
    """Parse the value of ``--log``."""
    try:
        return parse_names(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def job_count(text: str) -> int:
    """Parse the value of ``--jobs``: ``auto`` or an integer."""
    if text == "auto":
        return AUTO
    try:
        return integer(high=_MOST_JOBS)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or auto") from None


def split_names(names: str | list[str]) -> list[str]:
    """Split ``a,b`` into names without duplicates; a list is returned unchanged.

    Raises:
        UserError: The list contains no name.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    found = list(dict.fromkeys(name.strip() for name in parts if name.strip()))
    if names != "" and not found:
        raise UserError(f"'{names}' contains no names; expected a list such as a,b")
    return found


def check_output_file(path: Path | None) -> None:
    """Check that an output file can be created, before the work starts.

    Raises:
        UserError: Its folder does not exist, or the path is a folder.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
