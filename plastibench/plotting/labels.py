"""Names beside points, so that none covers another name or a point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from plastibench.plotting.over_seeds import Array
from plastibench.plotting.style import plain, renderer_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

_DISTANCES = (9, 16, 26, 38, 52, 70)  # points from the named point, nearest first
_DIRECTIONS = [math.radians(angle) for angle in (30, 150, -30, 210, 90, -90, 0, 180, 60, 120, -60, 240)]
_MARKER = 6  # points around a point that stay free


def place(
    figure: Figure,
    axis: Axes,
    names: Sequence[str],
    positions: Array,
    *,
    avoid: Array,
    bars: Array,
    colours: Sequence[str],
) -> None:
    """Write names beside points: of distances and directions the first where a name covers nothing.

    Args:
        figure: A figure that is drawn but for the names.
        axis: A panel in it whose limits and place in the figure are final.
        names: What to write.
        positions: The named points, in data coordinates. [N, 2]
        avoid: Every point, named or not. [M, 2]
        bars: Half lengths of their error bars, 0 where there are none. [M, 2]
        colours: Of the names.
    """
    figure.draw_without_rendering()
    renderer = renderer_of(figure)
    pixel = figure.dpi / 72
    size = _MARKER * pixel
    taken = [Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size) for x, y in axis.transData.transform(avoid)]
    for along in (bars * [1, 0], bars * [0, 1]):
        ends = zip(axis.transData.transform(avoid - along), axis.transData.transform(avoid + along), strict=True)
        taken += [Bbox([start - 1, end + 1]) for start, end in ends]
    inside = axis.get_window_extent(renderer)
    for name, position, colour in zip(names, positions, colours, strict=True):
        text = axis.annotate(
            plain(name),
            position,
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#9A9A9A", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )
        text.set_in_layout(False)
        for distance, direction in itertools.product(_DISTANCES, _DIRECTIONS):
            offset = distance * np.array([math.cos(direction), math.sin(direction)])
            text.set_position(tuple(offset))
            text.set_horizontalalignment("left" if offset[0] > 1 else "right" if offset[0] < -1 else "center")
            text.set_verticalalignment(
                "center" if abs(offset[1]) < abs(offset[0]) else "bottom" if offset[1] > 0 else "top"
            )
            box = _box(text, renderer)
            if _holds(inside, box) and not box.count_overlaps(taken):
                break
        taken.append(box)


def _box(text: Annotation, renderer: RendererBase) -> Bbox:
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer).padded(1)  # without the line to the point


def _holds(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
