"""Finished runs compared: what may be compared, statistics over seeds, and how they are shown."""

from plastibench.leaderboard.comparison import comparison, final, recovery
from plastibench.leaderboard.contest import Result, acts, by_group, contests, label, load, origin

__all__ = [
    "Result",
    "acts",
    "by_group",
    "comparison",
    "contests",
    "final",
    "label",
    "load",
    "origin",
    "recovery",
]
