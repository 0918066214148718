"""What an intervention brings against what it costs at once, and which of them no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plastibench.config.errors import UserError
from plastibench.leaderboard import by_group, label
from plastibench.plotting.caption import caption
from plastibench.plotting.labels import place
from plastibench.plotting.over_seeds import Array, contests, interval
from plastibench.plotting.style import Style, finish, handles, panels, styles, title
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#BBBBBB"


def pareto(found: Sequence[Result]) -> Figure:
    """A panel per env and agent: final accuracy or return against drop, with the Pareto front; its members are named.

    Args:
        found: Results.

    Raises:
        UserError: Nothing was intervened on.
    """
    shown = {
        names: results
        for names, results in contests(found).items()
        if any(run.summary.mean_drop is not None for run in results)
    }
    if not shown:
        raise UserError("no run has a drop: nothing was intervened on in them")
    found = [run for results in shown.values() for run in results]
    looks = styles(found)
    columns = min(2, len(shown))
    figure, axes = panels(-(-len(shown) // columns), columns, height=4.0)
    fronts: list[tuple[Axes, list[str], Array, Array]] = []
    for axis, (names, results) in zip(axes.flat, shown.items(), strict=False):
        groups = by_group(results)
        drawn = np.array([point(axis, runs, looks[label(runs[0])]) for runs in groups])  # [interventions, 2, 2]
        means = drawn[:, 0]
        best = front(means[:, 0], means[:, 1])
        axis.plot(means[best, 0], means[best, 1], color=_GREY, drawstyle="steps-post", linewidth=1, zorder=1)
        fronts.append((axis, [label(groups[number][0]) for number in best], means[best], drawn))
        title(axis, ", ".join(names), 52)
        label_axes(axis, results[0])
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    entries = handles({name: {**style, "linestyle": "none"} for name, style in looks.items()})
    words = "Grey: the Pareto front; of its named members none is beaten in both by another mean."
    finish(figure, entries, caption(found, words, intervals="bars"))
    for axis, members, positions, drawn in fronts:
        colours = [looks[name]["color"] for name in members]
        place(figure, axis, members, positions, avoid=drawn[:, 0], bars=np.nan_to_num(drawn[:, 1]), colours=colours)
    return figure


def front(drops: Array, finals: Array) -> list[int]:
    """Which points no other point beats: none loses as little and ends as high, and is better in one of them.

    Of points that are alike in both, all count.

    Args:
        drops: Lower is better. [N]
        finals: Higher is better. [N]

    Returns:
        Their numbers, by growing drop.
    """
    beaten = [
        bool(np.any((drops <= drop) & (finals >= final) & ((drops < drop) | (finals > final))))
        for drop, final in zip(drops, finals, strict=True)
    ]
    return sorted((number for number, out in enumerate(beaten) if not out), key=lambda number: drops[number])


def point(axis: Axes, runs: list[Result], style: Style) -> tuple[Array, Array]:
    """Draw final accuracy or return against drop, with 95 % confidence intervals.

    Where nothing is ever intervened on, nothing drops.

    Returns:
        The mean (drop, final), and half of its interval, NaN where there is none.
    """
    scale = 1.0 if runs[0].is_rl else 100.0
    values = scale * np.array([[run.summary.mean_drop or 0.0, run.final] for run in runs])  # [seeds, 2]
    mean, half = interval(values)
    bars: dict[str, Any] = {} if np.isnan(half).any() else {"xerr": half[0], "yerr": half[1]}
    look = {**style, "linestyle": "none"}
    axis.errorbar(mean[0], mean[1], capsize=2, markersize=7, elinewidth=1, **bars, **look)
    if not bars and len(values) > 1:
        axis.plot(values[:, 0], values[:, 1], markersize=3, alpha=0.6, **look)
    axis.margins(0.1)
    return mean, half


def label_axes(axis: Axes, result: Result) -> None:
    """What the axes of a panel of final scores against drops are."""
    if result.is_rl:
        axis.set(xlabel="return lost at an intervention, mean", ylabel="final return")
    else:
        axis.set(xlabel="drop at an intervention, mean, points", ylabel="final accuracy, %")
