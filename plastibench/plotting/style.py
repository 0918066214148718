"""Style shared by all plots: size, colours, markers and lines, panels, legend and caption."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

#: Width of every plot in inches: 900 pixels in a README, at 100 dpi.
WIDTH = 9.0
#: matplotlib settings: readable at that width, text as text in an SVG, reproducible files.
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

# Okabe and Ito's palette, which is safe for colour-blind readers, with grey instead of yellow, which is too light on
# white. Marker and line together distinguish 28 methods without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C8C8C")
MARKERS = "s^Dv<>PXhdp"
LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_BASE = {"color": "#000000", "marker": "o", "linestyle": "-", "zorder": 2.5}  # drawn above methods that change nothing
_SLOTS = {  # fixed slots for common methods, so that they look the same in every plot; other methods get the free slots
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
_PADDING = 0.08  # inches between panels, legend and caption, and around them
_NOTEBOOK_DPI = 100
_TITLE_LENGTH = 104  # characters across the plot


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Colour, marker and line of each method, by its name; ``none`` is black, ``reset`` blue.

    Styles depend only on the set of methods, so all plots of the same results agree. Methods are in order of
    appearance, ``none`` first, as in the legend.
    """
    methods = dict.fromkeys(methods)
    names = [name for name in methods if name != "none"]
    unused = set(_SLOTS) - set(names) - {"reset"}
    taken = {slot for name, slot in _SLOTS.items() if name not in unused}
    free = (slot for slot in range(len(names) + len(_SLOTS) + 1) if slot not in taken)
    slots = {**_SLOTS, **{name: next(free) for name in sorted(set(names) - set(_SLOTS))}}
    styles = {"none": _BASE, **{name: slot_style(slots[name]) for name in names}}
    return styles if "none" in methods else {name: styles[name] for name in names}


def slot_style(number: int) -> Style:
    """The style with the given number; the first 28 differ in marker and line."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


class _NotebookFigure(Figure):
    """A figure that notebooks display even without ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=_NOTEBOOK_DPI)
        return content.getvalue()


def subplots(rows: int, columns: int, *, height: float, **options: Any) -> tuple[Figure, Any]:
    """Create a figure with rows of panels; :func:`finish` adds room for the legend and the caption.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        height: Height of a row in inches.
        **options: Other arguments of ``Figure.subplots``.

    Returns:
        The figure, and its axes [rows, columns].
    """
    figure = _NotebookFigure(figsize=(WIDTH, rows * height))
    figure.set_layout_engine("constrained", w_pad=_PADDING, h_pad=_PADDING)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def grid(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """Create a figure with ``count`` panels in up to two columns; an unused panel is hidden."""
    columns = min(2, count)
    figure, axes = subplots(-(-count // columns), columns, height=height)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def task_axis(axis: Axes) -> None:
    """Put ticks at whole numbers on the x axis."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10], min_n_ticks=1))


def step_axis(axis: Axes) -> None:
    """Write steps on the x axis in thousands and millions."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def escape(text: str) -> str:
    """Escape dollar signs, which matplotlib reads as mathematics."""
    return text.replace("$", r"\$")


def set_title(axis: Axes, text: str) -> None:
    """Set the title of a panel, wrapped to its width."""
    spec = axis.get_subplotspec()
    columns = spec.get_gridspec().ncols if spec is not None else 1
    lines = textwrap.wrap(escape(text), _TITLE_LENGTH // columns)
    axis.set_title("\n".join(lines), fontsize=9.5 if len(lines) < 3 else 8)


def legend_handles(styles: Mapping[str, Style]) -> list[Line2D]:
    """Create the entries of a legend from the styles by name."""
    return [Line2D([], [], label=escape(name), **style) for name, style in styles.items()]


def finish(figure: Figure, handles: Sequence[Line2D], caption: str) -> Figure:
    """Add the legend and the caption below the panels, and enlarge the figure by their height.

    Args:
        figure: A figure from :func:`subplots` or :func:`grid`.
        handles: Entries of the legend, may be empty.
        caption: Text, wrapped to the figure's width.

    Returns:
        The same figure.
    """
    renderer = get_renderer(figure)
    width, height = figure.get_size_inches()
    caption = escape(caption)
    text = figure.text(0.012, 0, "", fontsize=8, color="#333333", va="bottom", linespacing=1.25)
    for characters in range(190, 40, -4):  # as many as fit, with room for a viewer with a wider font
        text.set_text("\n".join(textwrap.wrap(caption, characters)))
        if text.get_window_extent(renderer).width <= 0.955 * width * figure.dpi:
            break
    below = text.get_window_extent(renderer).height / figure.dpi + 2 * _PADDING
    legend = None
    for rows in range(max(1, -(-len(handles) // 6)), len(handles) + 1):
        legend = figure.legend(
            handles=list(handles),
            loc="lower center",
            ncols=-(-len(handles) // rows),
            frameon=False,
            handlelength=2.6,
            borderaxespad=0,
            borderpad=0.2,
        )
        legend.set_in_layout(False)
        if legend.get_window_extent(renderer).width <= 0.97 * width * figure.dpi or rows == len(handles):
            break
        legend.remove()
    captioned = below
    if legend is not None:
        below += legend.get_window_extent(renderer).height / figure.dpi + _PADDING
    total = height + below
    figure.set_size_inches(width, total)
    text.set_position((0.012, _PADDING / total))
    text.set_in_layout(False)
    if legend is not None:
        legend.set_bbox_to_anchor((0.5, captioned / total))
    figure.set_layout_engine(
        "constrained", w_pad=_PADDING, h_pad=_PADDING, rect=(0, below / total, 1, 1 - below / total)
    )
    return figure


def get_renderer(figure: Figure) -> RendererBase:
    """A renderer that measures text without a window."""
    return FigureCanvasAgg(figure).get_renderer()
