"""All of a scenario in one row: how it is learned, what each intervention gains, and what that costs at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plastibench.leaderboard import by_group, label
from plastibench.plotting.caption import caption
from plastibench.plotting.curves import label_axes, line
from plastibench.plotting.over_seeds import contests, moments, scores, together
from plastibench.plotting.pareto import label_axes as label_trade_off
from plastibench.plotting.pareto import point
from plastibench.plotting.style import Style, count_steps, count_tasks, finish, handles, panels, styles, title
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def overview(found: Sequence[Result]) -> Figure:
    """A row per env and agent: accuracy after each task, its gain over ``none``, and final accuracy against drop.

    Where an agent acts: return over steps, the share of low-gradient units of its critic, final return against drop.

    Args:
        found: Results.
    """
    looks, shown = styles(found), contests(found)
    figure, axes = panels(len(shown), 3, height=2.8)
    for (names, results), (left, middle, right) in zip(shown.items(), axes, strict=True):
        groups = by_group(results)
        base = next((runs for runs in groups if label(runs[0]) == "none"), [])
        is_rl = groups[0][0].is_rl
        for runs in groups:
            style = looks[label(runs[0])]
            line(left, *together([scores(run) for run in runs]), style)
            if is_rl:
                _low_gradients(middle, runs, style)
            else:
                gain(middle, runs, base, style)
            point(right, runs, style)
        title(left, ", ".join(names), 38)
        label_axes(left, results[0])
        label_trade_off(right, results[0])
        right.set_title("final against drop")
        if is_rl:
            count_steps(middle)
            middle.set(xlabel="steps", ylabel="% of the critic's units", title="low-gradient units")
            right.set_visible(any(run.events for run in results))
        else:
            label_gain(middle)
    return finish(figure, handles(looks), caption(found, intervals="bands and bars"))


def gain(axis: Axes, runs: list[Result], base: list[Result], style: Style) -> None:
    """Accuracy above that of ``none`` with the same seed, whose data is the same; nothing where there is none."""
    other = {run.seed: dict(scores(run)) for run in base}
    gains = [
        [(place, value - other[run.seed][place]) for place, value in scores(run) if place in other[run.seed]]
        for run in runs
        if run.seed in other
    ]
    if gains:
        line(axis, *together(gains), style)


def label_gain(axis: Axes) -> None:
    """What the axes of a panel of gains are."""
    count_tasks(axis)
    axis.set(xlabel="task", ylabel="accuracy above none, points", title="gain, paired by seed")


def _low_gradients(axis: Axes, runs: list[Result], style: Style) -> None:
    places, values = together([moments(run, "low-gradient-ratio", "critic") for run in runs])
    if np.size(values):
        line(axis, places, 100 * values, style)
