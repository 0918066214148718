"""Final score against drop, with the methods that no other method beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config.errors import UserError
from plastibench.plotting.caption import caption
from plastibench.plotting.panels import DROP, plot_trade_off
from plastibench.plotting.point_labels import label_points
from plastibench.plotting.series import Array, methods_by_setting
from plastibench.plotting.style import finish, grid, legend_handles, method_styles, set_title
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#BBBBBB"


def pareto(results: Sequence[Result]) -> Figure:
    """One panel per env and agent: final accuracy or return against mean drop, with the Pareto front labelled.

    Args:
        results: Results.

    Raises:
        UserError: No run has a drop.
    """
    settings = {
        title: groups
        for title, groups in methods_by_setting(results).items()
        if any(run.summary.mean_drop is not None for runs in groups.values() for run in runs)
    }
    if not settings:
        raise UserError("no run has a drop; pareto needs runs with interventions")
    styles = method_styles(name for groups in settings.values() for name in groups)
    results = [run for groups in settings.values() for runs in groups.values() for run in runs]
    figure, axes = grid(len(settings), height=4.0)
    labelled: list[tuple[Axes, list[str], list[int], Array]] = []
    for axis, (title, groups) in zip(axes, settings.items(), strict=True):
        points = plot_trade_off(axis, groups, styles)  # [methods, 2, 2]
        best = front(points[:, 0, 0], points[:, 0, 1])
        axis.plot(*points[best, 0].T, color=_GREY, drawstyle="steps-post", linewidth=1, zorder=1)
        set_title(axis, title)
        labelled.append((axis, [list(groups)[number] for number in best], best, points))
    handles = legend_handles({name: {**style, "linestyle": "none"} for name, style in styles.items()})
    sentence = "Grey line: Pareto front of the means; its members are labelled."
    finish(figure, handles, caption(results, sentence, DROP, intervals="bars"))
    for axis, names, best, points in labelled:  # the size of the panels is final only now
        colours = [styles[name]["color"] for name in names]
        means, bars = points[:, 0], np.nan_to_num(points[:, 1])
        label_points(figure, axis, names, means[best], avoid=means, bars=bars, colours=colours)
    return figure


def front(drops: Array, finals: Array) -> list[int]:
    """The Pareto front: points that no other point dominates, by increasing drop; equal points are all kept.

    A point dominates another if it is at least as good in both values and better in one.

    Args:
        drops: Lower is better. [N]
        finals: Higher is better. [N]

    Returns:
        Indices of the points.
    """
    dominated = [
        bool(np.any((drops <= drop) & (finals >= final) & ((drops < drop) | (finals > final))))
        for drop, final in zip(drops, finals, strict=True)
    ]
    return sorted((number for number, out in enumerate(dominated) if not out), key=lambda number: drops[number])
