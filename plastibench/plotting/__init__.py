"""Plots of finished runs: the kinds of plots, and how to draw and save one.

A kind is a function that takes results and returns a matplotlib ``Figure``. To add one, write the function in a module
of this package and add a line to :data:`PLOTS`. Importing this package does not import matplotlib.
"""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastibench.config.errors import UserError, did_you_mean
from plastibench.utils.atomic_io import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from plastibench.results.result import Result

#: Kind of plot to its function (``module:function`` in this package) and a summary.
PLOTS: dict[str, tuple[str, str]] = {
    "timeline": (
        "timeline:timeline",
        "accuracy within and across tasks, with the drop and the recovery; RL: return over steps",
    ),
    "overview": ("overview:overview", "per env and agent: accuracy by task, gain over none, final accuracy vs. drop"),
    "curves": ("curves:curves", "end-of-task accuracy, or return over steps; any metric with --metric"),
    "pareto": ("pareto:pareto", "final accuracy or return vs. drop at interventions, with the Pareto front"),
    "heatmap": ("heatmap:heatmap", "a metric by layer and task (--metric, default: dormant-ratio)"),
    "fig2": ("paper_figures:fig2", "the paper's Figure 2: resets of different parts of the network"),
    "fig3": ("fig3:fig3", "the paper's Figure 3: LayerNorm gradients of trained, reset and fresh networks"),
    "fig4": ("paper_figures:fig4", "the paper's Figure 4: RnR and baselines, accuracy and drop by task"),
    "fig5": ("paper_figures:fig5", "the paper's Figure 5: RnR with different criteria and thresholds"),
}
_DPI = 200
_SUFFIXES = ("", ".png", ".svg", ".pdf")


def draw(kind: str, results: Sequence[Result], **options: Any) -> Figure:
    """Draw a plot of results.

    Args:
        kind: A name in :data:`PLOTS`.
        results: Results from :func:`plastibench.load_results`; ``heatmap`` and ``fig3`` need their folders.
        **options: Options of the kind, such as ``metric`` or ``data_dir``; None means the default.

    Raises:
        UserError: The kind or an option is unknown, matplotlib is missing, or the results lack what the plot shows.
    """
    check_kind(kind)
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'plastibench[figures]'") from error
    from plastibench.plotting.style import RC

    module, _, name = PLOTS[kind][0].partition(":")
    function = getattr(importlib.import_module(f"plastibench.plotting.{module}"), name)
    known = [name for name in inspect.signature(function).parameters if name != "results"]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            available = ", ".join(known) or "none"
            raise UserError(f"plot {kind} has no option '{name.replace('_', '-')}' (options: {available})")
    with matplotlib.rc_context(RC):
        return function(_without_duplicates(results), **given)


def _without_duplicates(results: Sequence[Result]) -> list[Result]:
    """Keep one of the runs that differ only in what was measured; each would count as another seed."""
    from plastibench.plotting.series import runs_by_setting

    kept = {id(run) for runs in runs_by_setting(results).values() for run in runs}
    return [run for run in results if id(run) in kept]


def png(figure: Figure, dpi: int = _DPI) -> bytes:
    """Content of a PNG file of a plot; reproducible byte by byte."""
    return _render(figure, "png", dpi)


def svg(figure: Figure) -> bytes:
    """Content of an SVG file of a plot, with text as text; reproducible byte by byte."""
    return _render(figure, "svg", _DPI)


def check_kind(kind: str) -> None:
    """Check that a kind of plot exists.

    Raises:
        UserError: It does not.
    """
    if kind not in PLOTS:
        raise UserError(f"unknown plot '{kind}'{did_you_mean(kind, PLOTS)} (kinds: {', '.join(PLOTS)})")


def check_path(path: Path) -> None:
    """Check that a plot can be saved under a path, before it is drawn.

    Raises:
        UserError: The suffix is not one that :func:`save` knows, or the folder does not exist.
    """
    if path.suffix not in _SUFFIXES or not path.name:
        raise UserError(f"cannot write '{path.name}'; use a name that ends in .png, .svg or .pdf, or has no suffix")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")


def save(figure: Figure, path: Path) -> list[Path]:
    """Save a plot as PNG and SVG, or as PDF if the name ends in ``.pdf``. Nothing is written if rendering fails.

    Args:
        figure: The plot.
        path: Name of the file, with suffix .png, .svg, .pdf or none.

    Returns:
        The files written.

    Raises:
        UserError: See :func:`check_path`.
    """
    check_path(path)
    formats = ["pdf"] if path.suffix == ".pdf" else ["png", "svg"]
    contents = {path.with_suffix(f".{format}"): _render(figure, format, _DPI) for format in formats}
    for target, content in contents.items():
        with atomic(target) as file:
            file.write(content)
    return list(contents)


def _render(figure: Figure, format: str, dpi: int) -> bytes:
    """Render to bytes, without the date and version that matplotlib adds by default."""
    import matplotlib

    from plastibench.plotting.style import RC

    without = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(content, format=format, dpi=dpi, metadata=without[format])
    return content.getvalue()
