"""Names of metrics in plots: check a requested name, and label the axis of a metric."""

from __future__ import annotations

from collections.abc import Collection

from plastibench.config import renamed
from plastibench.config.errors import UserError, did_you_mean


def find_metric(metric: str, available: Collection[str], owner: str) -> str:
    """The current name of a metric that is available.

    Args:
        metric: Current or old name.
        available: Names of the metrics that were recorded.
        owner: What records metrics, for the message: ``run`` or ``layer``.

    Raises:
        UserError: It is not available.
    """
    metric = renamed.METRICS.get(metric, metric)
    if metric not in available:
        names = ", ".join(available) or "none"
        raise UserError(f"no {owner} has the metric '{metric}'{did_you_mean(metric, available)} (recorded: {names})")
    return metric


def scale(metric: str) -> float:
    """100 for a ratio, which is shown in %, otherwise 1."""
    return 100.0 if metric.endswith("-ratio") else 1.0


def axis_label(metric: str) -> str:
    """Name and unit: ``dormant-ratio (%)``."""
    return f"{metric} (%)" if scale(metric) == 100 else metric
