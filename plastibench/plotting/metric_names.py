"""Names of metrics in plots: check a requested name, and label the axis of a metric."""

from __future__ import annotations

from collections.abc import Collection

from plastibench.config import renamed
from plastibench.config.errors import UserError, did_you_mean

_FRACTIONS = ("accuracy", "accuracy-after", "train-accuracy", "agreement", "auc", "policy-churn", "revived-fraction")


def find_metric(metric: str, available: Collection[str], owner: str) -> str:
    """The current name of a metric that is available.

    Args:
        metric: Current or old name.
        available: Names of the metrics that were recorded.
        owner: The noun for the error message: ``run`` or ``layer``.

    Raises:
        UserError: It is not available.
    """
    metric = renamed.METRICS.get(metric, metric)
    if metric not in available:
        short = [name for name in available if "/" not in name]  # layers would fill pages
        names = ", ".join(short or available) or "none"
        raise UserError(f"no {owner} has the metric '{metric}'{did_you_mean(metric, available)} (recorded: {names})")
    return metric


def scale(metric: str, is_rl: bool = False) -> float:
    """100 for a fraction, which is shown in %, otherwise 1."""
    last = metric.rpartition("/")[2]
    percent = last.endswith("-ratio") or last in _FRACTIONS or (last == "drop" and not is_rl)
    return 100.0 if percent else 1.0


def axis_label(metric: str, is_rl: bool = False) -> str:
    """Name and unit: ``dormant-ratio (%)``."""
    if metric.rpartition("/")[2] == "drop":
        return "drop in return" if is_rl else "drop (percentage points)"
    return f"{metric} (%)" if scale(metric) == 100 else metric
