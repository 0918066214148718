"""Plots for the leaderboard: curves and Pareto front of the best methods of each setting."""

from __future__ import annotations

from plastibench import plotting
from plastibench.leaderboard.standings import Standings

_MAX_METHODS = 8  # besides none and reset; more lines are hard to tell apart
_ALWAYS = ("none", "reset")
_DPI = 100
_CAPTIONS = {"curves": "Learning curves of the best methods", "pareto": "Final score vs. drop of the best methods"}


def plot_settings(standings: Standings) -> dict[str, list[tuple[str, bytes]]]:
    """Draw the best methods of each setting.

    Args:
        standings: Built from results loaded with ``lean=False`` (see :func:`plastibench.load_results`).

    Returns:
        Title of a setting to its plots: caption and content of a PNG file.

    Raises:
        UserError: matplotlib is missing.
    """
    found: dict[str, list[tuple[str, bytes]]] = {}
    for setting, rows in standings.tables:
        best = [row["intervention"] for row in rows if row["intervention"] not in _ALWAYS][:_MAX_METHODS]
        runs = [run for method in setting.methods if method.name in (*best, *_ALWAYS) for run in method.runs.values()]
        for kind, caption in _CAPTIONS.items():
            if kind == "pareto" and not any(run.summary.mean_drop for run in runs):
                continue
            plot = plotting.png(plotting.draw(kind, runs), _DPI)
            found.setdefault(setting.title, []).append((f"{caption}: {setting.title}", plot))
    return found
