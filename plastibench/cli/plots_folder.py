"""The folder ``plots`` below the runs: the default plot of a command, and plots drawn with ``plastibench plot``."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plastibench.config.errors import UserError

if TYPE_CHECKING:
    from plastibench.results.result import Result

FOLDER = "plots"
_SHOWN = 20  # latest plots in TensorBoard
_LONGEST = 120  # characters of a file name
_DPI = 150


def draw_default_plot(found: Sequence[Result], runs_dir: Path) -> Path | None:
    """Draw the timeline of the runs of one command, save it below the runs' folder and show it in TensorBoard.

    The file name depends on env, agent and methods, so the same command with more seeds replaces the plot. Errors are
    reported in one line, so that a failed plot does not fail a finished run.

    Returns:
        The PNG file; None if there is none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print("plastibench: no plot without matplotlib: pip install 'plastibench[figures]'", file=sys.stderr)
        return None
    from plastibench import plotting
    from plastibench.utils.atomic_io import atomic

    path = runs_dir / FOLDER / f"{_name(found)}.png"
    try:
        content = plotting.png(plotting.draw("timeline", found), _DPI)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(content)
        show_in_tensorboard(runs_dir)
    except Exception as error:
        reason = " ".join(str(error).split())
        print(f"plastibench: the plot is missing: {type(error).__name__}: {reason}", file=sys.stderr)
        return None
    return path


def default_output(runs_dir: Path, kind: str, metric: str | None) -> Path:
    """Create and return the folder that ``plastibench plot`` writes to if no file is named.

    Raises:
        UserError: The folder cannot be created.
    """
    folder = runs_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error.strerror or error}; name a file with --out") from error
    return folder / _safe(kind if metric is None else f"{kind}_{metric}")


def show_in_tensorboard(runs_dir: Path) -> None:
    """Show the latest plots of the folder in TensorBoard's *Images*."""
    from plastibench.utils import tensorboard_events, tensorboard_summaries

    folder = runs_dir / FOLDER
    latest = sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime, reverse=True)[:_SHOWN]
    images = [(0, tensorboard_summaries.image(path.stem, path.read_bytes())) for path in latest]
    tensorboard_events.replace(folder, images)


def _name(found: Sequence[Result]) -> str:
    from plastibench.leaderboard import label

    methods = dict.fromkeys(label(result) for result in found)
    return _safe("_".join([label(found[0], "env"), label(found[0], "agent"), "+".join(methods)]))


def _safe(name: str) -> str:
    """A file name of limited length; a digest keeps long names distinct."""
    safe = re.sub(r"[^\w.=,+-]+", "-", name)
    if len(safe) <= _LONGEST:
        return safe
    return f"{safe[: _LONGEST - 7]}~{hashlib.sha256(name.encode()).hexdigest()[:6]}"
