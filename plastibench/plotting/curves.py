"""Lines over tasks, epochs or steps: accuracy at the end of each task, return, or any recorded metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plastibench.leaderboard import method_names
from plastibench.metrics import INTERVENTIONS, METRICS
from plastibench.plotting import recorded
from plastibench.plotting.caption import caption
from plastibench.plotting.metric_names import find_metric
from plastibench.plotting.panels import plot_metric, plot_scores
from plastibench.plotting.series import methods_by_setting
from plastibench.plotting.style import finish, grid, legend_handles, method_styles, set_title
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(results: Sequence[Result], *, metric: str | None = None) -> Figure:
    """One panel per env and agent: accuracy at the end of each task, return over steps, or a recorded metric.

    Args:
        results: Results.
        metric: A recorded metric. If an agent has several networks, the metric of the first network is used, unless the
            name begins with a network's prefix, such as ``plasticity-actor/srank``.

    Raises:
        UserError: No run has the metric.
    """
    if metric is not None:
        metric = find_metric(metric, recorded.names(results), "run")
        results = [run for run in results if recorded.points(run, metric)]
    styles, settings = method_styles(method_names(results).values()), methods_by_setting(results)
    figure, axes = grid(len(settings), height=3.1 if len(settings) > 1 else 3.8)
    for axis, (title, groups) in zip(axes, settings.items(), strict=True):
        if metric is None:
            plot_scores(axis, groups, styles)
        else:
            plot_metric(axis, groups, styles, metric)
        set_title(axis, title)
    last = (metric or "").rpartition("/")[2]
    definition = [f"{last}: {meaning}."] if (meaning := METRICS.get(last) or INTERVENTIONS.get(last)) else []
    return finish(figure, legend_handles(styles), caption(results, *definition))
