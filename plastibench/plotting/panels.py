"""Panels that several kinds of plots share: each function draws all methods of a setting into one panel.

Groups hold the runs of each method, one per seed. Every line and point is a mean over seeds with its 95 % confidence
interval; with one or two seeds, each seed is drawn instead of the interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from plastibench.leaderboard import label
from plastibench.plotting import metric_names, recorded
from plastibench.plotting.series import (
    Array,
    align,
    align_points,
    drop_series,
    has_several_tasks,
    mean_and_interval,
    metric_series,
    score_series,
)
from plastibench.plotting.style import Style, step_axis, task_axis
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Groups = Mapping[str, list[Result]]  # name of a method to its runs
Styles = Mapping[str, Style]  # by name of the method

#: Sentence for the caption of a plot that shows drops.
DROP = "Drop: accuracy or return right before an intervention minus right after it."
_MAX_MARKERS = 30  # on a line
_MARGIN = 3.0  # margin around an axis from 0 to 100 %, in percentage points


def plot_scores(axis: Axes, groups: Groups, styles: Styles) -> None:
    """Accuracy at the end of each task, or return over steps."""
    for name, runs in groups.items():
        plot_mean(axis, *align([score_series(run) for run in runs]), styles[name])
    first = first_run(groups)
    _label_positions(axis, first)
    if first.is_rl:
        axis.set_ylabel("return at end of task" if has_several_tasks(first) else "return")
    else:
        axis.set_ylabel("accuracy at end of task (%)")
        limit_to_percentages(axis)


def plot_gains(axis: Axes, groups: Groups, styles: Styles) -> None:
    """Score minus that of ``none`` with the same seed, which has the same data; empty without ``none``."""
    base = max((runs for runs in groups.values() if label(runs[0]) == "none"), key=len, default=[])
    scores = {run.seed: dict(score_series(run)) for run in base}
    for name, runs in groups.items():
        gains = [
            [(task, score - scores[run.seed][task]) for task, score in score_series(run) if task in scores[run.seed]]
            for run in runs
            if run.seed in scores
        ]
        plot_mean(axis, *align(gains), styles[name])
    _label_positions(axis, first_run(groups))
    axis.set(ylabel="accuracy gain (percentage points)", title="gain over none, paired by seed")


def plot_drops(axis: Axes, groups: Groups, styles: Styles) -> None:
    """Drop at each intervention, by the number of the new task or by steps."""
    for name, runs in groups.items():
        plot_mean(axis, *align([drop_series(run) for run in runs]), styles[name])
    is_rl = first_run(groups).is_rl
    _label_positions(axis, first_run(groups))
    if not is_rl:
        axis.set_xlabel("new task")
    unit = "return" if is_rl else "accuracy (percentage points)"
    axis.set(ylabel=f"drop in {unit}", title="drop at each intervention")


def plot_metric(axis: Axes, groups: Groups, styles: Styles, metric: str, role: str = "") -> None:
    """A recorded metric by task, over epochs or over steps; a plasticity metric of the first network or of a role."""
    unit = recorded.unit([run for runs in groups.values() for run in runs], metric)
    is_rl = first_run(groups).is_rl
    for name, runs in groups.items():
        if role:
            positions, values = align([metric_series(run, metric, role) for run in runs])
        else:
            positions, values = align_points([recorded.points(run, metric) for run in runs], unit)
        plot_mean(axis, positions, values * metric_names.scale(metric, is_rl), styles[name])
    axis.set_xlabel(unit)
    (step_axis if is_rl else task_axis)(axis)
    axis.set_ylabel(metric_names.axis_label(metric, is_rl))


def plot_trade_off(axis: Axes, groups: Groups, styles: Styles) -> Array:
    """Final accuracy or return against mean drop. Without interventions the drop is 0.

    Returns:
        Mean and half-width of the interval, NaN if there is none, of (drop, final). [methods, 2, 2]
    """
    points = [_plot_point(axis, runs, styles[name]) for name, runs in groups.items()]
    axis.margins(0.1)
    if first_run(groups).is_rl:
        axis.set(xlabel="mean drop in return", ylabel="final return", title="final return vs. drop")
    else:
        axis.set(xlabel="mean drop (percentage points)", ylabel="final accuracy (%)", title="final accuracy vs. drop")
        limit_to_percentages(axis)
    return np.array(points)


def plot_mean(axis: Axes, positions: Array, values: Array, style: Style) -> None:
    """Plot the mean over seeds as a line and its 95 % confidence interval as a band; two seeds as thin lines.

    Args:
        axis: The panel.
        positions: [P]
        values: [seeds, P]; nothing is drawn if it is empty.
        style: Colour, marker and line.
    """
    if not values.size:
        return
    mean, half = mean_and_interval(values)
    axis.plot(positions, mean, **{**style, "marker": style["marker"] if len(positions) <= _MAX_MARKERS else None})
    if not np.isnan(half).any():
        axis.fill_between(positions, mean - half, mean + half, color=style["color"], alpha=0.1, linewidth=0)
    elif len(values) > 1:
        axis.plot(positions, values.T, color=style["color"], linewidth=0.6, alpha=0.5)


def _plot_point(axis: Axes, runs: list[Result], style: Style) -> tuple[Array, Array]:
    scale = 1.0 if runs[0].is_rl else 100.0
    values = scale * np.array([[run.summary.mean_drop or 0.0, run.final] for run in runs])  # [seeds, 2]
    mean, half = mean_and_interval(values)
    bars: dict[str, Any] = {} if np.isnan(half).any() else {"xerr": half[0], "yerr": half[1]}
    unconnected = {**style, "linestyle": "none"}
    axis.errorbar(mean[0], mean[1], capsize=2, markersize=7, elinewidth=1, **bars, **unconnected)
    if not bars and len(values) > 1:
        axis.plot(values[:, 0], values[:, 1], markersize=3, alpha=0.6, **unconnected)
    return mean, half


def first_run(groups: Groups) -> Result:
    """Any run of the setting; all its runs have the same env and agent."""
    return next(iter(groups.values()))[0]


def _label_positions(axis: Axes, run: Result) -> None:
    axis.set_xlabel("steps" if run.is_rl else "task")
    (step_axis if run.is_rl else task_axis)(axis)


def limit_to_percentages(axis: Axes) -> None:
    """Clip intervals to the range from 0 % to 100 %."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -_MARGIN), min(high, 100 + _MARGIN))
