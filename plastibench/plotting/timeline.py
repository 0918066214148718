"""The default plot of a run: accuracy within and across tasks, with the drop at each intervention and the recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter

from plastibench.leaderboard import label
from plastibench.plotting.caption import caption
from plastibench.plotting.panels import Groups, Styles, first_run, limit_to_percentages, plot_scores
from plastibench.plotting.recorded import starts
from plastibench.plotting.series import Array, has_several_tasks, mean_and_interval, methods_by_setting
from plastibench.plotting.style import (
    Style,
    escape,
    finish,
    legend_handles,
    method_styles,
    set_title,
    step_axis,
    subplots,
    task_axis,
)
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_METHODS = 12  # per plot; more lines are hard to distinguish
_ALWAYS = ("none", "reset")
_MAX_TASKS = 20  # tasks drawn in detail; with more, a line would be a solid block
_MAX_TEETH = 120  # tasks times methods that are drawn in detail
_MAX_TICKS = 100  # marks of interventions
_MARKERS = 10  # on a line
_LINEAR = 5.0  # epochs after a boundary that are drawn to scale in a long task
_LONG = 40.0  # epochs of a long task; in a linear plot, drop and recovery would be one vertical line
_MAX_LEVELS = 4  # methods whose accuracy before the boundary is drawn as a dotted line
_DETAIL = (
    "Lines break at task boundaries. At the end of a task, a line falls or rises to the accuracy on the "
    "same task right after the intervention (drop)."
)
_BOUNDARY = (
    "Right: mean over all task boundaries: accuracy at the end of the old task (left of 0), right after the "
    "intervention if there is one at the boundary, and over the new task."
)
_RETURNS = "If an intervention was evaluated, the line falls or rises to the return right after it."
_TICKS = "Marks above the x axis: interventions."


class _Vertex(NamedTuple):
    """A vertex of a run's line. Vertices of several seeds with the same task, position and kind belong together."""

    task: int
    x: float
    kind: int  # at the same x, in this order: 0 right before and 1 right after an intervention, 2 an evaluation
    y: float


def timeline(results: Sequence[Result]) -> Figure:
    """One row per env and agent: the entire run and, for task streams, the mean accuracy around a task boundary.

    - Task streams: accuracy over the epochs of all tasks; with more than 20 tasks, or 120 tasks times methods, accuracy
      at the end of each task.
    - RL: return over steps, with interventions and task boundaries.

    With more than 12 methods in a setting, ``none``, ``reset`` and the best ones are drawn.

    Args:
        results: Results.
    """
    settings, sentences = _best_methods(methods_by_setting(results))
    styles = method_styles(name for groups in settings.values() for name in groups)
    chosen = [run for groups in settings.values() for runs in groups.values() for run in runs]
    with_boundaries = any(len(run.tasks) > 1 for run in chosen)
    ratios = {"width_ratios": [2, 1]} if with_boundaries else {}
    figure, axes = subplots(len(settings), 2 if with_boundaries else 1, height=3.3, gridspec_kw=ratios)
    several, ticks = False, False
    for (title, groups), row in zip(settings.items(), axes, strict=True):
        first = first_run(groups)
        several = several or (_has_detail(groups) and len(first.tasks) > 1)
        if first.is_rl or _has_detail(groups):
            ticks = _plot_runs(row[0], groups, styles) or ticks
        else:
            plot_scores(row[0], groups, styles)
        set_title(row[0], title)
        if with_boundaries:
            if len(first.tasks) > 1:
                _plot_boundary(row[1], groups, styles)
            else:
                row[1].set_visible(False)
    sentences += [_DETAIL] if several else []
    sentences += [_BOUNDARY] if with_boundaries else []
    sentences += [_RETURNS] if any(run.events for run in chosen) else []
    sentences += [_TICKS] if ticks else []
    return finish(figure, legend_handles(styles), caption(chosen, *sentences))


def plot_run(axis: Axes, run: Result) -> None:
    """Draw one run into a panel: accuracy over epochs or return over steps, with drops and task boundaries."""
    values, positions = _aligned([_vertices(run)])
    colour: dict[str, Any] = {"color": "black"} if label(run) == "none" else {}
    name = escape(f"{label(run)}, seed {run.seed}")
    axis.plot(positions, values[0] / (1 if run.is_rl else 100), label=name, **colour)
    _draw_boundaries(axis, run)
    axis.set(xlabel="agent steps" if run.is_rl else "epoch", ylabel="return" if run.is_rl else "accuracy")
    if not run.is_rl:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(escape(f"{run.env}, {run.agent}"))
    axis.legend()


def _best_methods(settings: Mapping[str, Groups]) -> tuple[dict[str, Groups], list[str]]:
    """Return the methods to draw in each setting, and a sentence about those left out."""
    kept: dict[str, Groups] = {}
    most = 0
    for title, groups in settings.items():
        always = [name for name, runs in groups.items() if label(runs[0]) in _ALWAYS]
        others = [name for name in groups if name not in always]
        if len(groups) > MAX_METHODS:
            most = max(most, len(groups))
            others.sort(key=lambda name: -np.mean([run.final for run in groups[name]]))
            others = others[: max(0, MAX_METHODS - len(always))]
        kept[title] = {name: runs for name, runs in groups.items() if name in (*always, *others)}
    if not most:
        return kept, []
    return kept, [f"Of {most} methods, none and reset, if run, and those with the best final value are shown."]


def _has_detail(groups: Groups) -> bool:
    """Whether the line of a task stream shows every evaluation, or only the end of each task."""
    tasks = max(len(run.tasks) for runs in groups.values() for run in runs)
    return not first_run(groups).is_rl and tasks <= _MAX_TASKS and tasks * len(groups) <= _MAX_TEETH


# The whole run ----------------------------------------------------------------------------------------------------


def _plot_runs(axis: Axes, groups: Groups, styles: Styles) -> bool:
    """Draw the line of each method; return whether interventions are marked on the axis."""
    marked = False
    for number, (name, runs) in enumerate(groups.items()):
        style = styles[name]
        values, positions = _aligned([_vertices(run) for run in runs])
        _plot(axis, positions, values, style, number)
        marked = _mark_interventions(axis, runs[0], style, number) or marked
    _draw_boundaries(axis, max((runs[0] for runs in groups.values()), key=lambda run: len(run.tasks)))
    _label_axes(axis, first_run(groups))
    if not first_run(groups).is_rl:
        limit_to_percentages(axis)
    return marked


def _vertices(run: Result) -> list[_Vertex]:
    """The line of a run: its evaluations, and the values right before and after each intervention that was evaluated.

    Accuracies are in %.
    """
    if run.is_rl:
        found = [_Vertex(point.task, point.steps, 2, point.value) for point in run.returns]
        found += [_Vertex(event.task, event.steps, 0, event.before) for event in run.events]
        found += [_Vertex(event.task, event.steps, 1, event.after) for event in run.events]
        return sorted(found)
    found = []
    for task, start in zip(run.tasks, starts(run), strict=True):
        if task.after is not None:  # belongs to the line of the task before
            found.append(_Vertex(task.task - 1, start, 2, 100 * task.after))
        found += [_Vertex(task.task, start + epoch, 2 * bool(epoch), 100 * value) for epoch, value in task.curve]
        for record in run.interventions:
            if record.task == task.task and record.position and None not in (record.before, record.after):
                assert record.before is not None and record.after is not None
                found.append(_Vertex(task.task, start + record.position, 0, 100 * record.before))
                found.append(_Vertex(task.task, start + record.position, 1, 100 * record.after))
    return sorted(found, key=lambda vertex: (vertex.task, vertex.x, vertex.kind))


def _aligned(runs: Sequence[Sequence[_Vertex]]) -> tuple[Array, Array]:
    """Values [seeds, P] and positions [P] of the vertices that all runs have; NaN between two tasks."""
    tables: list[Mapping[tuple[int, float, int, int], float]] = []
    for vertices in runs:
        table: dict[tuple[int, float, int, int], float] = {}
        for vertex in vertices:
            again = 0
            while (key := (vertex.task, vertex.x, vertex.kind, again)) in table:
                again += 1
            table[key] = vertex.y
        tables.append(table)
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    positions: list[float] = []
    columns: list[list[float]] = []
    for before, key in zip([None, *keys], keys, strict=False):
        if before is not None and before[0] != key[0]:
            positions.append(key[1])
            columns.append([np.nan] * len(tables))
        positions.append(key[1])
        columns.append([table[key] for table in tables])
    return np.array(columns, float).reshape(-1, len(tables)).T, np.array(positions, float)


def _plot(axis: Axes, positions: Array, values: Array, style: Style, number: int) -> None:
    """Plot the mean over seeds with its interval; two seeds as thin lines. Markers of methods are staggered."""
    if not values.size:
        return
    mean, half = mean_and_interval(values)
    axis.plot(positions, mean, **_line(style, len(positions), number))
    if len(values) > 2:
        low, high = mean - half, mean + half
        axis.fill_between(positions, low, high, color=style["color"], alpha=0.1, linewidth=0)
    elif len(values) > 1:
        axis.plot(positions, values.T, color=style["color"], linewidth=0.6, alpha=0.5)


def _line(style: Style, length: int, number: int) -> Style:
    every = max(1, length // _MARKERS)
    return {**style, "markevery": (number % every, every), "linewidth": 1.2}


def _mark_interventions(axis: Axes, run: Result, style: Style, number: int) -> bool:
    """Draw ticks at interventions within tasks; return whether there are any."""
    offsets = {task.task: start for task, start in zip(run.tasks, starts(run), strict=True)} if not run.is_rl else {}
    positions = {
        offsets.get(record.task, 0.0) + record.position
        for record in run.interventions
        if record.position is not None and (run.is_rl or record.position)
    } | {event.steps for event in run.events}
    if run.intervention == "none" or not positions or len(positions) > _MAX_TICKS:
        return False
    height = 0.016 + 0.032 * (number % 4)
    axis.plot(
        sorted(positions),
        [height] * len(positions),
        transform=axis.get_xaxis_transform(),
        linestyle="none",
        marker="|",
        markersize=8,
        markeredgewidth=1.5,
        color=style["color"],
    )
    return True


def _draw_boundaries(axis: Axes, run: Result) -> None:
    """Draw a thin vertical line at each task boundary."""
    boundaries = starts(run)[1:] if not run.is_rl else []
    if run.is_rl and has_several_tasks(run):
        first = {point.task: point.steps for point in reversed(run.returns)}
        boundaries = [float(steps) for task, steps in first.items() if task]
    for position in boundaries:
        axis.axvline(position, color="0.8", linewidth=0.8, zorder=0)


def _label_axes(axis: Axes, run: Result) -> None:
    (step_axis if run.is_rl else task_axis)(axis)
    axis.set_xlabel("agent steps" if run.is_rl else "epoch")
    axis.set_ylabel("return" if run.is_rl else "accuracy on the current task (%)")


# Task boundaries --------------------------------------------------------------------------------------------------


def _plot_boundary(axis: Axes, groups: Groups, styles: Styles) -> None:
    """Draw the mean over task boundaries of the drop and the recovery."""
    for number, (name, runs) in enumerate(groups.items()):
        style = styles[name]
        values, positions = _aligned([_mean_boundary(run) for run in runs])
        _plot(axis, positions, values, style, number)
        if values.size and len(groups) <= _MAX_LEVELS:
            level = {"color": style["color"], "linestyle": ":", "linewidth": 0.8, "alpha": 0.7}
            axis.axhline(float(values[:, 0].mean()), **level)
    axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    title = "after a task boundary" if first_run(groups).every else "drop and recovery"
    task_axis(axis)
    end = max(max(task.curve)[0] for runs in groups.values() for run in runs for task in run.tasks)
    axis.set(xlabel="epochs since the task boundary", ylabel="accuracy (%)", title=title)
    if end > _LONG:
        axis.set_xscale("symlog", linthresh=_LINEAR)
        axis.set_xlim(-0.8, 1.15 * end)
        powers = [n for n in (20, 100, 500, 2000, 10_000, 50_000) if n <= end]
        axis.set_xticks([0, 2, 5, *powers], list(map(str, [0, 2, 5, *powers])))
        axis.minorticks_off()
        axis.set_xlabel("epochs since the boundary (logarithmic)")
    limit_to_percentages(axis)


def _mean_boundary(run: Result) -> list[_Vertex]:
    """Mean over the task boundaries of a run: before and after the intervention, then the epochs of the new task."""
    tasks = [task for task in run.tasks if task.before is not None and task.after is not None]
    if not tasks:
        return []
    before = 100 * float(np.mean([task.before for task in tasks if task.before is not None]))
    after = 100 * float(np.mean([task.after for task in tasks if task.after is not None]))
    curves = [dict(task.curve) for task in tasks]
    common = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    end = max(common, default=1.0)
    left = -0.5 if end > _LONG else -0.06 * end
    found = [_Vertex(0, left, 0, before), _Vertex(0, 0, 0, before), _Vertex(0, 0, 1, after)]
    return found + [_Vertex(1, x, 2, 100 * float(np.mean([curve[x] for curve in curves]))) for x in common]
