"""How every figure looks: colours, markers and lines, sizes, the legend and the caption below the panels."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from plastibench.leaderboard import label
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

#: Width of every figure in inches: 900 pixels of a README at the usual 100 to the inch.
WIDTH = 9.0
#: matplotlib's settings: readable at that width, text as text in an SVG, and the same bytes every time.
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "grid.alpha": 0.3,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "plastibench",
}
Style = Mapping[str, Any]

# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow, which white swallows. Marker
# and line together tell 28 entries apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C8C8C")
MARKERS = "s^Dv<>PXhdp"
LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_BASE = {"color": "#000000", "marker": "o", "linestyle": "-", "zorder": 2.5}  # above what does nothing at all
_SLOTS = {  # of well-known names, so that they look the same in every figure; others take what is left
    "reset": 0,
    "rnr": 1,
    "redo": 2,
    "shrink-perturb-keep80": 3,
    "shrink-perturb-keep20": 4,
    "regrama": 5,
    "low-gradient-quantile": 6,
    "reset-mlp": 8,
    "reset-mlp-qkv": 9,
    "reset-linear": 10,
    "reset-layernorm": 11,
    "rnr criterion=regrama": 12,
}
_EDGE = 0.08  # inches between the parts below the panels, and around them


def styles(found: Sequence[Result]) -> dict[str, Style]:
    """Colour, marker and line of each intervention, by its label; ``none`` is black, ``reset`` blue.

    They depend on nothing but which interventions there are, so figures of the same results agree. In order of
    appearance, ``none`` first, as a legend shows them.
    """
    names = [name for name in dict.fromkeys(label(result) for result in found) if name != "none"]
    unused = set(_SLOTS) - set(names) - {"reset"}
    taken = {slot for name, slot in _SLOTS.items() if name not in unused}
    free = (slot for slot in range(len(names) + len(_SLOTS) + 1) if slot not in taken)
    slots = {**_SLOTS, **{name: next(free) for name in sorted(set(names) - set(_SLOTS))}}
    looks = {"none": _BASE, **{name: slot_style(slots[name]) for name in names}}
    return looks if any(label(result) == "none" for result in found) else {name: looks[name] for name in names}


def slot_style(number: int) -> Style:
    """The look of the entry of that number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


def panels(rows: int, columns: int, *, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure with panels in rows; room for legend and caption comes with :func:`finish`.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        height: Inches of a row.
        **grid: Further arguments of ``Figure.subplots``.

    Returns:
        The figure, and its axes [rows, columns].
    """
    figure = Figure(figsize=(WIDTH, rows * height))
    figure.set_layout_engine("constrained", w_pad=_EDGE, h_pad=_EDGE)
    return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def count_tasks(axis: Axes) -> None:
    """Whole numbers on the x axis of a panel."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def count_steps(axis: Axes) -> None:
    """Steps on the x axis, in thousands and millions."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def plain(text: str) -> str:
    """Names as they are: matplotlib would set what stands between dollars as mathematics."""
    return text.replace("$", r"\$")


def title(axis: Axes, text: str, width: int = 46) -> None:
    """Head a panel; a long name goes on in the next line."""
    lines = textwrap.wrap(plain(text), width)
    axis.set_title("\n".join(lines), fontsize=9.5 if len(lines) < 3 else 8)


def handles(shown: Mapping[str, Style]) -> list[Line2D]:
    """What a legend shows of each style, by the name to show."""
    return [Line2D([], [], label=plain(name), **style) for name, style in shown.items()]


def finish(figure: Figure, entries: Sequence[Any], caption: str) -> Figure:
    """Add the legend and the caption below the panels; the figure grows by what they need.

    Args:
        figure: From :func:`panels`.
        entries: Handles of the legend, may be none.
        caption: Text, wrapped to the figure's width.
    """
    renderer = renderer_of(figure)
    width, height = figure.get_size_inches()
    caption = plain(caption)
    text = figure.text(0.012, 0, "", fontsize=8, color="#333333", va="bottom", linespacing=1.25)
    for characters in range(190, 40, -4):  # as many to the line as fit, with room for a viewer whose font is wider
        text.set_text("\n".join(textwrap.wrap(caption, characters)))
        if text.get_window_extent(renderer).width <= 0.955 * width * figure.dpi:
            break
    below = text.get_window_extent(renderer).height / figure.dpi + 2 * _EDGE
    legend = None
    for rows in range(max(1, -(-len(entries) // 6)), len(entries) + 1):
        legend = figure.legend(
            handles=list(entries),
            loc="lower center",
            ncols=-(-len(entries) // rows),
            frameon=False,
            handlelength=2.6,
            borderaxespad=0,
            borderpad=0.2,
        )
        legend.set_in_layout(False)
        if legend.get_window_extent(renderer).width <= 0.97 * width * figure.dpi or rows == len(entries):
            break
        legend.remove()
    captioned = below
    if legend is not None:
        below += legend.get_window_extent(renderer).height / figure.dpi + _EDGE
    total = height + below
    figure.set_size_inches(width, total)
    text.set_position((0.012, _EDGE / total))
    text.set_in_layout(False)
    if legend is not None:
        legend.set_bbox_to_anchor((0.5, captioned / total))
    figure.set_layout_engine("constrained", w_pad=_EDGE, h_pad=_EDGE, rect=(0, below / total, 1, 1 - below / total))
    return figure


def renderer_of(figure: Figure) -> RendererBase:
    """What measures text in a figure; needs no window."""
    return FigureCanvasAgg(figure).get_renderer()
