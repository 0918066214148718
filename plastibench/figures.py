"""Pictures of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plastibench.checkpoint import atomic
from plastibench.errors import UserError
from plastibench.leaderboard import Result, by_group, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind people can tell apart, and a marker for each besides.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKERS = "os^Dv<>P"


def overview(found: Sequence[Result], path: Path) -> None:
    """Draw a row per env and agent: accuracy after each task, and drop at the switches against final accuracy.

    Lines and points are means over seeds, bands and bars standard deviations.

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

    contests = sorted({_contest(result) for result in found})
    figure, axes = pyplot.subplots(len(contests), 2, figsize=(10, 3.6 * len(contests)), squeeze=False)
    for (env, agent), (left, right) in zip(contests, axes, strict=True):
        groups = by_group(result for result in found if _contest(result) == (env, agent))
        for number, runs in enumerate(groups):
            style: dict[str, Any] = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[(number + 3 * (number // len(_COLOURS))) % len(_MARKERS)],
                "label": f"{label(runs[0])} ({len(runs)})",
            }
            _learning(left, runs, style)
            _trade_off(right, runs, style)
        left.set(xlabel="task", ylabel="accuracy at its end, %", title=f"{env}, {agent}")
        right.set(xlabel="drop at the intervention, points", ylabel="final accuracy, %", title="gain against drop")
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), title="intervention (seeds)")
        for axis in (left, right):
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    pyplot.close(figure)


def _contest(result: Result) -> tuple[str, str]:
    return label(result, "env"), label(result, "agent")


def _learning(axis: Axes, runs: list[Result], style: dict[str, Any]) -> None:
    ends = 100 * np.array([[task["end"] for task in run["tasks"]] for run in runs])  # [seeds, tasks]
    tasks = np.arange(1, ends.shape[1] + 1)
    axis.plot(tasks, ends.mean(0), markersize=4, linewidth=1.4, **style)
    if len(runs) > 1:
        spread = ends.std(0, ddof=1)
        axis.fill_between(tasks, ends.mean(0) - spread, ends.mean(0) + spread, color=style["color"], alpha=0.12, lw=0)


def _trade_off(axis: Axes, runs: list[Result], style: dict[str, Any]) -> None:
    final = 100 * np.array([run["summary"]["final-accuracy"] for run in runs])
    drop = 100 * np.array([run["summary"]["mean-drop"] or 0.0 for run in runs])
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
