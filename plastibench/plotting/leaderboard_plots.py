"""The pictures that go with a leaderboard: for each of its contests the best entries, drawn with the usual figures."""

from __future__ import annotations

from plastibench import plotting
from plastibench.leaderboard.standings import Standings

_ENTRIES = 8  # beside none and reset: more lines than these are told apart by nobody
_ALWAYS = ("none", "reset")
_DPI = 100
_SHOWN = {"curves": "Learning curves of the best", "pareto": "What they reach, against what they lose at once"}


def pictures(shown: Standings) -> dict[str, list[tuple[str, bytes]]]:
    """By title of a contest: what each picture shows, and the PNG.

    Args:
        shown: Made of whole results, not of lean ones.

    Raises:
        UserError: matplotlib is missing.
    """
    found: dict[str, list[tuple[str, bytes]]] = {}
    for contest, rows in shown.tables:
        best = [row["intervention"] for row in rows if row["intervention"] not in _ALWAYS][:_ENTRIES]
        runs = [run for entry in contest.methods if entry.name in (*best, *_ALWAYS) for run in entry.runs.values()]
        for kind, what in _SHOWN.items():
            costs = any(run.summary.mean_drop for run in runs)
            if kind == "pareto" and not costs:  # nothing was lost by anybody
                continue
            picture = plotting.png(plotting.draw(kind, runs), _DPI)
            found.setdefault(contest.title, []).append((f"{what}: {contest.title}", picture))
    return found
