"""Pictures of finished runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plastibench.checkpoint import atomic
from plastibench.errors import UserError
from plastibench.leaderboard import Result, acts, by_group, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind people can tell apart, and a marker for each besides.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKERS = "os^Dv<>P"


def overview(found: Sequence[Result], path: Path) -> None:
    """Draw a row per env and agent: accuracy after each task, its gain over ``none``, and final accuracy against drop.

    Where an agent acts: return over steps, the share of low-gradient units of its critic, final return against drop.

    Lines and points are means over seeds, bands and bars standard deviations; gains are paired by seed.

    Args:
        found: Results.
        path: A .png, .svg or .pdf file.

    Raises:
        UserError: matplotlib is missing, or the file name has another ending.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw into '{path.name}'; use a name that ends in .png, .svg or .pdf")
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'plastibench[figures]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    styles = _styles(found)
    contests = sorted({_contest(result) for result in found})
    figure, axes = pyplot.subplots(len(contests), 3, figsize=(14, 3.6 * len(contests)), squeeze=False)
    for contest, (left, middle, right) in zip(contests, axes, strict=True):
        groups = by_group(result for result in found if _contest(result) == contest)
        base = next((runs for runs in groups if label(runs[0]) == "none"), [])
        acting = acts(groups[0][0])
        for runs in groups:
            style = styles[label(runs[0])]
            if acting:
                _returns(left, runs, style)
                _low_gradients(middle, runs, style)
                _trade_off(right, runs, style, "final-return", 1)
            else:
                _learning(left, runs, style)
                _gain(middle, runs, base, style)
                _trade_off(right, runs, style, "final-accuracy", 100)
        seeds = sorted({len(runs) for runs in groups})
        right.set_title(f"gain against drop ({'–'.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds)")
        title = textwrap.fill(", ".join(contest), 60)
        left.set_title(title, fontsize=9 if "\n" in title else None)
        if acting:
            left.set(xlabel="steps", ylabel="return, at the end of each task" if _tasks(groups[0][0]) > 1 else "return")
            right.set_visible(any(run["events"] for runs in groups for run in runs))
            middle.set(xlabel="steps", ylabel="% of the critic's units", title="low-gradient units")
            right.set(xlabel="return lost at the intervention", ylabel="final return")
            continue
        left.set(xlabel="task", ylabel="accuracy at its end, %")
        middle.set(xlabel="task", ylabel="accuracy above none, points", title="gain, paired by seed")
        right.set(xlabel="drop at the intervention, points", ylabel="final accuracy, %")
        for axis in (left, middle):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [pyplot.Line2D([], [], linewidth=1.4, label=name, **style) for name, style in styles.items()]
    legend = figure.legend(handles=handles, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=130, bbox_inches="tight", bbox_extra_artists=[legend])
    pyplot.close(figure)


def _styles(found: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each intervention, the same in every row."""
    styles: dict[str, dict[str, Any]] = {}
    for result in found:
        turn, number = divmod(len(styles), len(_COLOURS))
        style = {"color": _COLOURS[number], "marker": _MARKERS[(number + 3 * turn) % len(_MARKERS)]}
        styles.setdefault(label(result), style)
    return styles


def _contest(result: Result) -> tuple[str, str]:
    return label(result, "env"), label(result, "agent")


def _learning(axis: Axes, runs: list[Result], style: dict[str, Any]) -> None:
    ends = 100 * np.array([[task["end"] for task in run["tasks"]] for run in runs])  # [seeds, tasks]
    tasks = np.arange(1, ends.shape[1] + 1)
    axis.plot(tasks, ends.mean(0), markersize=4, linewidth=1.4, **style)
    if len(runs) > 1:
        spread = ends.std(0, ddof=1)
        axis.fill_between(tasks, ends.mean(0) - spread, ends.mean(0) + spread, color=style["color"], alpha=0.12, lw=0)


def _gain(axis: Axes, runs: list[Result], base: list[Result], style: dict[str, Any]) -> None:
    pairs = [(run, other) for run in runs for other in base if run["seed"] == other["seed"]]
    if pairs:
        gains = [[a["end"] - b["end"] for a, b in zip(x["tasks"], y["tasks"], strict=True)] for x, y in pairs]
        mean = 100 * np.array(gains).mean(0)  # [tasks]
        axis.plot(np.arange(1, len(mean) + 1), mean, markersize=4, linewidth=1.4, **style)


def _returns(axis: Axes, runs: list[Result], style: dict[str, Any]) -> None:
    points = [run["returns"] for run in runs]
    if _tasks(runs[0]) > 1:  # each begins where nothing is known: a line through all would be a saw
        points = [list({point["task"]: point for point in run}.values()) for run in points]
    _band(axis, [point["steps"] for point in points[0]], [[point["value"] for point in run] for run in points], style)


def _tasks(run: Result) -> int:
    return len({point["task"] for point in run["returns"]})


def _low_gradients(axis: Axes, runs: list[Result], style: dict[str, Any]) -> None:
    critics = [[moment for moment in run["plasticity"] if moment["role"] == "critic"] for run in runs]
    steps = [moment["place"] for moment in critics[0]]
    _band(axis, steps, [[100 * moment["low-gradient-ratio"] for moment in moments] for moments in critics], style)


def _band(axis: Axes, places: list[float], curves: list[list[float]], style: dict[str, Any]) -> None:
    """Mean over seeds, and a band of one standard error of it."""
    values = np.array(curves)  # [seeds, places]
    axis.plot(places, values.mean(0), linewidth=1.4, **{**style, "marker": None})
    if len(values) > 1:
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        axis.fill_between(
            places, values.mean(0) - error, values.mean(0) + error, color=style["color"], alpha=0.15, lw=0
        )


def _trade_off(axis: Axes, runs: list[Result], style: dict[str, Any], name: str, scale: float) -> None:
    final = scale * np.array([run["summary"][name] for run in runs])
    drop = scale * np.array([run["summary"]["mean-drop"] or 0.0 for run in runs])
    several = len(runs) > 1
    axis.errorbar(
        drop.mean(),
        final.mean(),
        xerr=drop.std(ddof=1) if several else None,
        yerr=final.std(ddof=1) if several else None,
        linestyle="none",
        capsize=2,
        markersize=7,
        **style,
    )
