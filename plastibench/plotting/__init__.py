"""Pictures of finished runs: which kinds there are, and how one is drawn and saved.

Every kind is a function of results that returns a matplotlib ``Figure``; it stands in a module of its own and in one
line of :data:`FIGURES`. Nothing here imports matplotlib until something is drawn.
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

#: Kind of figure to where its function is and what it shows.
FIGURES: dict[str, tuple[str, str]] = {
    "overview": ("overview:overview", "a row per env and agent: accuracy by task, gain over none, final against drop"),
    "curves": ("curves:curves", "accuracy at the end of each task, or return over steps; any metric with --metric"),
    "pareto": ("pareto:pareto", "final accuracy or return against what an intervention costs at once"),
    "heatmap": ("heatmap:heatmap", "a metric by layer and task (--metric, default dormant-ratio)"),
    "fig2": ("paper_figures:fig2", "the paper's Figure 2: which parts of the network must be reset"),
    "fig3": ("fig3:fig3", "the paper's Figure 3: LayerNorm gradients of base, reset and fresh networks"),
    "fig4": ("paper_figures:fig4", "the paper's Figure 4: RnR among its rivals, and drops at the switches"),
    "fig5": ("paper_figures:fig5", "the paper's Figure 5: what RnR revives, and how much of it"),
}
_DPI = 200
_SUFFIXES = ("", ".png", ".svg", ".pdf")


def draw(kind: str, found: Sequence[Result], **options: Any) -> Figure:
    """Draw results.

    Args:
        kind: A name in :data:`FIGURES`.
        found: Results as :func:`plastibench.load_results` returns them; ``heatmap`` and ``fig3`` need their folders.
        **options: Options of the kind, as ``metric`` or ``data_dir``; None stands for the kind's default.

    Raises:
        UserError: No such kind or option, matplotlib is missing, or the results lack what the figure shows.
    """
    check_kind(kind)
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'plastibench[figures]'") from error
    from plastibench.plotting.style import RC

    module, _, name = FIGURES[kind][0].partition(":")
    function = getattr(importlib.import_module(f"plastibench.plotting.{module}"), name)
    known = [name for name in inspect.signature(function).parameters if name != "found"]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise UserError(f"figures {kind} has no option '{name.replace('_', '-')}' (it has: {takes})")
    with matplotlib.rc_context(RC):
        return function(_once(found), **given)


def _once(found: Sequence[Result]) -> list[Result]:
    """Of runs that differ in what was measured of them alone, one: they would count as another seed."""
    from plastibench.leaderboard import by_setting

    kept = {id(run) for setting in by_setting(found) for run in setting.runs}
    return [run for run in found if id(run) in kept]


def png(figure: Figure, dpi: int = _DPI) -> bytes:
    """A figure as a PNG file; the same figure gives the same bytes."""
    return _rendered(figure, "png", dpi)


def svg(figure: Figure) -> bytes:
    """A figure as an SVG file whose text is text; the same figure gives the same bytes."""
    return _rendered(figure, "svg", _DPI)


def check_kind(kind: str) -> None:
    """See that there is such a kind.

    Raises:
        UserError: There is none.
    """
    if kind not in FIGURES:
        raise UserError(f"no figure '{kind}'{did_you_mean(kind, FIGURES)} ({', '.join(FIGURES)})")


def check_path(path: Path) -> None:
    """See that a figure can be saved under a name, before it is drawn.

    Raises:
        UserError: The name has another ending than those that :func:`save` knows, or its folder does not exist.
    """
    if path.suffix not in _SUFFIXES or not path.name:
        raise UserError(f"cannot draw into '{path.name}'; use a name that ends in .png, .svg or .pdf, or in nothing")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}")


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other, or as PDF where the name ends so; all are drawn before any.

    Args:
        figure: The figure.
        path: Name of the file, with .png, .svg, .pdf or no ending.

    Returns:
        What was written.

    Raises:
        UserError: See :func:`check_path`.
    """
    check_path(path)
    formats = ["pdf"] if path.suffix == ".pdf" else ["png", "svg"]
    contents = {path.with_suffix(f".{format}"): _rendered(figure, format, _DPI) for format in formats}
    for target, content in contents.items():
        with atomic(target) as file:
            file.write(content)
    return list(contents)


def _rendered(figure: Figure, format: str, dpi: int) -> bytes:
    """The bytes of a file; matplotlib would write date, version and random names into it."""
    import matplotlib

    from plastibench.plotting.style import RC

    without = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(content, format=format, dpi=dpi, metadata=without[format])
    return content.getvalue()
