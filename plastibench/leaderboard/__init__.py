"""The leaderboard: which runs are comparable, statistics over seeds, and their output as text, HTML and TensorBoard."""

from plastibench.leaderboard.naming import means, method_names
from plastibench.leaderboard.run_tables import comparison, final, recovery
from plastibench.leaderboard.settings import by_group, by_setting, label, origin

__all__ = [
    "by_group",
    "by_setting",
    "comparison",
    "final",
    "label",
    "means",
    "method_names",
    "origin",
    "recovery",
]
