"""Lines over tasks or steps: accuracy, return, or a metric of plasticity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config import renamed
from plastibench.config.errors import UserError, did_you_mean
from plastibench.leaderboard import by_group, label
from plastibench.metrics import METRICS
from plastibench.plotting.caption import caption
from plastibench.plotting.over_seeds import Array, changes, contests, interval, moments, scores, together
from plastibench.plotting.style import Style, count_steps, count_tasks, finish, handles, panels, styles, title
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(found: Sequence[Result], *, metric: str | None = None) -> Figure:
    """A panel per env and agent: accuracy at the end of each task, return over steps, or a plasticity metric.

    Args:
        found: Results.
        metric: A metric in the results' ``plasticity``; of an agent with several networks that of its first.

    Raises:
        UserError: No run has the metric.
    """
    if metric is not None:
        metric = renamed.METRICS.get(metric, metric)
        found = having(found, metric)
    looks, shown = styles(found), contests(found)
    columns = min(2, len(shown))
    figure, axes = panels(-(-len(shown) // columns), columns, height=3.1 if columns == 2 else 3.8)
    for axis, (names, results) in zip(axes.flat, shown.items(), strict=False):
        for runs in by_group(results):
            role = runs[0].plasticity[0].role if metric else ""
            series = [moments(run, metric, role) for run in runs] if metric else [scores(run) for run in runs]
            places, values = together(series)
            line(axis, places, values * _scale(metric), looks[label(runs[0])])
        title(axis, ", ".join(names), 52)
        label_axes(axis, results[0])
        if metric:
            axis.set_ylabel(f"{metric}, %" if _scale(metric) == 100 else metric)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    words = [f"{metric}: {METRICS[metric]}."] if metric in METRICS else []
    return finish(figure, handles(looks), caption(found, *words))


def having(found: Sequence[Result], metric: str) -> list[Result]:
    """The results that have a plasticity metric.

    Raises:
        UserError: None has.
    """
    names = {name: None for run in found for record in run.plasticity for name in record.metrics}
    with_it = [run for run in found if any(record.metrics.get(metric) is not None for record in run.plasticity)]
    if not with_it:
        raise UserError(f"no run has the metric '{metric}'{did_you_mean(metric, names)} (there are {', '.join(names)})")
    return with_it


def line(axis: Axes, places: Array, values: Array, style: Style) -> None:
    """Mean over seeds and its 95 % confidence interval as a band; of two seeds thin lines instead.

    Args:
        axis: Where to draw.
        places: [P]
        values: [seeds, P]
        style: Colour, marker and line.
    """
    mean, half = interval(values)
    axis.plot(places, mean, **{**style, "marker": style["marker"] if len(places) <= 30 else None})
    if not np.isnan(half).any():
        axis.fill_between(places, mean - half, mean + half, color=style["color"], alpha=0.1, linewidth=0)
    elif len(values) > 1:
        axis.plot(places, values.T, color=style["color"], linewidth=0.6, alpha=0.5)


def label_axes(axis: Axes, result: Result) -> None:
    """What the axes of a panel of accuracies or returns are."""
    if result.is_rl:
        count_steps(axis)
        axis.set(xlabel="steps", ylabel="return at the end of each task" if changes(result) else "return")
    else:
        count_tasks(axis)
        axis.set(xlabel="task", ylabel="accuracy at its end, %")


def _scale(metric: str | None) -> float:
    return 100.0 if metric is not None and metric.endswith("-ratio") else 1.0
