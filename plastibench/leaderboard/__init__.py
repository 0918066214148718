"""Finished runs compared: what may be compared, statistics over seeds, and how they are shown."""

from plastibench.leaderboard.run_tables import comparison, final, recovery
from plastibench.leaderboard.settings import Result, acts, by_group, contests, label, load, origin

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
