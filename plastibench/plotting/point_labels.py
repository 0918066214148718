"""Text labels next to points, placed so that they do not overlap each other or the points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from plastibench.plotting.series import Array
from plastibench.plotting.style import escape, get_renderer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

_DISTANCES = (9, 16, 26, 38, 52, 70)  # from point to label in typographic points, tried in this order
_DIRECTIONS = [math.radians(angle) for angle in (30, 150, -30, 210, 90, -90, 0, 180, 60, 120, -60, 240)]
_CLEARANCE = 6  # around each marker, in typographic points


def label_points(
    figure: Figure,
    axis: Axes,
    names: Sequence[str],
    positions: Array,
    *,
    avoid: Array,
    bars: Array,
    colours: Sequence[str],
) -> None:
    """Place each label as close to its point as possible without overlaps and crossing leader lines.

    If no position meets all conditions, they are relaxed in this order: crossing lines, overlap, leaving the panel.

    Args:
        figure: The figure, complete except for the labels.
        axis: A panel in it; its limits and its position in the figure must be final.
        names: Text of each label.
        positions: The labelled points, in data coordinates. [N, 2]
        avoid: All points, labelled or not. [M, 2]
        bars: Half-lengths of their error bars, 0 for none. [M, 2]
        colours: Colour of each label.
    """
    figure.draw_without_rendering()
    renderer = get_renderer(figure)
    size = _CLEARANCE * figure.dpi / 72
    obstacles = [Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size) for x, y in axis.transData.transform(avoid)]
    for along in (bars * [1, 0], bars * [0, 1]):
        ends = zip(axis.transData.transform(avoid - along), axis.transData.transform(avoid + along), strict=True)
        obstacles += [Bbox([start - 1, end + 1]) for start, end in ends]
    labels: list[Bbox] = []
    leaders: list[Bbox] = []
    inside = axis.get_window_extent(renderer)
    for name, position, colour in zip(names, positions, colours, strict=True):
        text = axis.annotate(
            escape(name),
            position,
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#9A9A9A", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )
        text.set_in_layout(False)
        candidates: list[tuple[tuple[bool, int, int], tuple[float, float]]] = []
        for distance, direction in itertools.product(_DISTANCES, _DIRECTIONS):
            offset = (distance * math.cos(direction), distance * math.sin(direction))
            _move(text, offset)
            box = _box(text, renderer)
            leader = _leader(axis.transData.transform(position), box)
            crossings = box.count_overlaps(leaders) + sum(label.count_overlaps(leader) for label in labels)
            cost = (not _contains(inside, box), box.count_overlaps(obstacles + labels), crossings)
            candidates.append((cost, offset))
            if not any(cost):
                break
        _move(text, min(candidates, key=lambda candidate: candidate[0])[1])
        labels.append(_box(text, renderer))
        leaders += _leader(axis.transData.transform(position), labels[-1])


def _move(text: Annotation, offset: tuple[float, float]) -> None:
    """Put a label at an offset from its point, aligned so that it extends away from the point."""
    x, y = offset
    text.set_position(offset)
    text.set_horizontalalignment("left" if x > 1 else "right" if x < -1 else "center")
    text.set_verticalalignment("center" if abs(y) < abs(x) else "bottom" if y > 0 else "top")


def _box(text: Annotation, renderer: RendererBase) -> Bbox:
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer).padded(1)  # without the leader line


def _leader(point: Array, box: Bbox) -> list[Bbox]:
    """Small boxes along the line that matplotlib draws from a point towards the centre of its label."""
    line = np.linspace(point, np.mean([box.min, box.max], axis=0), 32)
    return [Bbox([at - 1, at + 1]) for at in line if not box.contains(*at)]


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
