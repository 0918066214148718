"""TensorBoard's leaderboard, which is rewritten whenever runs have finished."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plastibench.leaderboard.standings import Standings
    from plastibench.results.result import Result

# With more than 40 runs, TensorBoard shows no run until some are selected; this selects the leaderboard.
BOARD_ADDRESS = "http://localhost:6006/#text&regexInput=leaderboard"
_MOST_PLOTTED = 6  # settings
_LIMIT = 1000  # results that are read and written within about two seconds


def update_board(runs_dir: Path, plots: bool = False) -> None:
    """Rewrite TensorBoard's leaderboard, unless there are too many results to do this quickly.

    Errors are reported in one line; they do not fail runs that have finished.

    Args:
        runs_dir: Folder of all runs.
        plots: Include plots, if matplotlib is installed.
    """
    from plastibench.leaderboard import tensorboard
    from plastibench.leaderboard.standings import standings
    from plastibench.results.files import find_results, load_results

    try:
        count = len(find_results(runs_dir))
        if not count:
            tensorboard.remove(runs_dir)
        elif count <= _LIMIT:
            with contextlib.redirect_stderr(io.StringIO()):  # `plastibench leaderboard` reports unreadable results
                found = load_results(runs_dir)
            write_board(runs_dir, standings(found), plots, most=_MOST_PLOTTED)
    except Exception as error:
        reason = " ".join(str(error).split())
        print(f"plastibench: TensorBoard's leaderboard is not up to date: {reason}", file=sys.stderr)


def write_board(runs_dir: Path, shown: Standings, plots: bool, most: int | None = None) -> Path:
    """Write TensorBoard's leaderboard, with plots if requested and if matplotlib is installed.

    Args:
        runs_dir: Folder of all runs.
        shown: The leaderboard.
        plots: Whether to draw plots; otherwise the existing ones are kept.
        most: Plot at most this many settings, those with the latest results; None: all.
    """
    from plastibench.leaderboard import tensorboard

    drawn = None
    if plots and importlib.util.find_spec("matplotlib"):
        from plastibench.plotting.leaderboard_plots import plot_settings

        latest = sorted(shown.tables, key=lambda table: _latest(table[0].runs), reverse=True)[:most]
        plotted = plot_settings(dataclasses.replace(shown, tables=latest))
        drawn = {title: png for of_setting in plotted.values() for title, png in of_setting}
    return tensorboard.write(runs_dir, shown, drawn)


def _latest(runs: Sequence[Result]) -> float:
    """Time of the latest result of some runs."""
    paths = [run.folder / "result.json" for run in runs if run.folder is not None]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
