"""A diagnosis as a heat map of layers by metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config.errors import UserError
from plastibench.diagnosis.diagnose import Diagnosis
from plastibench.diagnosis.rules import RULES, Rule
from plastibench.utils.atomic_io import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's palette, and a shape for each verdict: colour is not the only cue.
MARKS = {"ok": ("#009E73", "●"), "watch": ("#E69F00", "▲"), "sick": ("#D55E00", "■")}


def draw(found: Sequence[Diagnosis], path: Path) -> None:
    """Draw a heat map for each network; darker means further from a fresh network.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'plastibench[figures]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = _heat_maps(found)
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _heat_maps(found: Sequence[Diagnosis]) -> Figure:
    from matplotlib import pyplot

    rules = [rule for rule in RULES if any(rule in each.rules for each in found)]
    heights = [max(1, len(each.layers)) for each in found]
    size = (3.5 + 1.05 * max(1, len(rules)), 0.27 * sum(heights) + 1.7 * len(found) + 0.9)
    figure, axes = pyplot.subplots(
        len(found), 1, figsize=size, squeeze=False, gridspec_kw={"height_ratios": heights}, layout="constrained"
    )
    images = [_heat_map(each, rules, axis) for each, axis in zip(found, axes[:, 0], strict=True)]
    bar = figure.colorbar(images[-1], ax=axes[:, 0].tolist(), location="bottom", shrink=0.5, aspect=30, pad=0.02)
    bar.set_ticks([0, 1], labels=["like a fresh network", "sick"])
    bar.ax.tick_params(labelsize=8, length=0)
    return figure


def _heat_map(found: Diagnosis, rules: Sequence[Rule], axis: Axes) -> AxesImage:
    from matplotlib import pyplot

    values = np.full((max(1, len(found.layers)), max(1, len(rules))), np.nan)
    for row, layer in enumerate(found.layers):
        for column, rule in enumerate(rules):
            if (value := layer.severity(rule)) is not None:
                values[row, column] = value
            text, colour = rule.format(layer.values.get(rule.metric)), "w" if values[row, column] > 0.55 else "k"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        colour, shape = MARKS[layer.verdict]
        position = (len(rules) - 0.4, row)
        label = f"{shape} {layer.verdict}"
        axis.annotate(label, position, va="center", fontsize=8, color=colour, annotation_clip=False)
    colours = pyplot.get_cmap("Blues").with_extremes(bad="#ffffff")
    image = axis.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(rules)), [rule.column for rule in rules], rotation=30, ha="left", fontsize=9)
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(found.layers)), [_short(layer.name) for layer in found.layers], fontsize=8)
    axis.set_xticks(np.arange(len(rules) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(found.layers) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="w", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{_short(found.title, 80)}\nverdict: {found.verdict}", fontsize=10, loc="left")
    return image


def _short(name: str, length: int = 34) -> str:
    name = name.replace("$", r"\$")
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"
