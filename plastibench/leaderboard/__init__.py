"""Finished runs compared: what may be compared, statistics over seeds, and how they are shown."""

from plastibench.leaderboard.run_tables import comparison, final, recovery
from plastibench.leaderboard.settings import by_group, contests, label, origin

__all__ = [
    "by_group",
    "comparison",
    "contests",
    "final",
    "label",
    "origin",
    "recovery",
]
