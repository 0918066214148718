"""The paper's Figures 2, 4 and 5, drawn from the runs that exist: one row per env and agent."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plastibench.config.errors import UserError
from plastibench.leaderboard import by_group, label
from plastibench.plotting.caption import caption
from plastibench.plotting.panels import DROP, first_run, plot_drops, plot_gains, plot_scores, plot_trade_off
from plastibench.plotting.series import runs_by_setting
from plastibench.plotting.style import (
    COLOURS,
    LINES,
    MARKERS,
    Style,
    finish,
    legend_handles,
    method_styles,
    set_title,
    subplots,
)
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Methods = dict[str, list[Result]]  # label of an intervention to its runs
Rows = dict[str, Methods]  # title of a setting to the methods in its row

_FIG2 = ("none", "reset-mlp", "reset-mlp-qkv", "reset-linear", "reset-layernorm", "reset")
_FIG4: tuple[tuple[str, ...], ...] = (  # among alternatives, the first that exists is used
    *(("none",), ("reset",), ("redo",), ("shrink-perturb-keep80",), ("shrink-perturb-keep20",)),
    ("rnr", "rnr criterion=regrama"),  # what the paper uses in its first and its second row
)
_REFERENCES = {"none", "reset"}
THRESHOLDS = ("redo", "regrama", "regrama-post", "regrama-weight")  # the criteria that compare with tau
_CRITERIA = {"redo": "ReDo", "regrama": "ReGraMa", "low-gradient-quantile": "Low Gradient Quantile"}
_COLOUR_OF = {"redo": 2, "regrama": 5, "low-gradient-quantile": 1, "random": 3, "weight-norm": 4}  # others: 0
_GREY: dict[str, dict[str, Any]] = {
    "none": {"color": "#777777", "marker": "o", "linestyle": "-"},
    "reset": {"color": "#777777", "marker": "s", "linestyle": "--"},
}


def fig2(results: Sequence[Result]) -> Figure:
    """Accuracy at the end of each task when parts of the network are reset, and its gain over ``none``.

    Args:
        results: Results; other interventions are ignored.

    Raises:
        UserError: There is no run of these interventions.
    """
    rows = _rows(results, "fig2", [(name,) for name in _FIG2], needed=set(_FIG2) - _REFERENCES)
    styles = method_styles(map(label, results))
    figure, axes = subplots(len(rows), 2, height=3.4)
    for (title, methods), (left, right) in zip(rows.items(), axes, strict=True):
        plot_scores(left, methods, styles)
        set_title(left, title)
        plot_gains(right, methods, styles)
        right.set_visible("none" in methods and not first_run(methods).is_rl)
    sentence = "Each method resets the named part of the network at every task boundary."
    return finish(figure, legend_handles(_shown(styles, rows, _FIG2)), caption(_runs(rows), sentence))


def fig4(results: Sequence[Result]) -> Figure:
    """Accuracy at the end of each task and drop at each task boundary, for RnR and its baselines.

    Args:
        results: Results; other interventions are ignored.

    Raises:
        UserError: There is no run of these interventions.
    """
    names = list(itertools.chain(*_FIG4))
    rows = _rows(results, "fig4", _FIG4, needed=set(names) - _REFERENCES)
    styles = method_styles(map(label, results))
    figure, axes = subplots(len(rows), 2, height=3.2)
    for (title, methods), (left, right) in zip(rows.items(), axes, strict=True):
        plot_scores(left, methods, styles)
        set_title(left, title)
        plot_drops(right, methods, styles)
    return finish(figure, legend_handles(_shown(styles, rows, names)), caption(_runs(rows), DROP))


def fig5(results: Sequence[Result]) -> Figure:
    """RnR with several criteria and thresholds: accuracy at the end of each task, and final accuracy against drop.

    Args:
        results: Results. ``rnr`` runs with other changed options than criterion and threshold are ignored; ``none`` and
            ``reset`` are drawn in grey.

    Raises:
        UserError: There are no two variants to compare.
    """
    variants = {label(run): name for run in results if (name := variant_name(run))}
    names = ["none", "reset", *sorted(variants, key=variants.__getitem__)]
    rows = _rows(results, "fig5", [(name,) for name in names], needed=set(variants), least=2)
    styles = {**_GREY, **_variant_styles({label(run): run for run in results if label(run) in variants})}
    figure, axes = subplots(len(rows), 2, height=3.4)
    for (title, methods), (left, right) in zip(rows.items(), axes, strict=True):
        plot_scores(left, methods, styles)
        set_title(left, title)
        plot_trade_off(right, methods, styles)
    handles = legend_handles({variants.get(name, name): style for name, style in _shown(styles, rows, names).items()})
    sentence = "RnR by criterion, with its threshold or quantile in parentheses; grey: no intervention and full resets."
    return finish(figure, handles, caption(_runs(rows), sentence, DROP, intervals="bands and bars"))


def variant_name(run: Result) -> str:
    """Name of an RnR variant, such as ``ReGraMa (1.0)``; empty for other interventions or if other options changed."""
    if run.intervention != "rnr" or run.every or run.schedule:
        return ""
    if set(run.changed.intervention) - {"criterion", "tau", "quantile"}:
        return ""
    options = run.options.intervention
    criterion = options.get("criterion", "")
    return f"{_CRITERIA.get(criterion, criterion)} ({options['tau' if criterion in THRESHOLDS else 'quantile']})"


def _variant_styles(runs: Mapping[str, Result]) -> dict[str, Style]:
    """One colour per criterion, one line per threshold, one marker per variant."""
    styles: dict[str, Style] = {}
    ranks: dict[str, int] = {}
    for number, name in enumerate(sorted(runs, key=lambda name: variant_name(runs[name]))):
        criterion = runs[name].options.intervention["criterion"]
        rank = ranks[criterion] = ranks.get(criterion, -1) + 1
        styles[name] = {
            "color": COLOURS[_COLOUR_OF.get(criterion, 0)],
            "marker": MARKERS[1:][number % (len(MARKERS) - 1)],  # the first one belongs to reset
            "linestyle": LINES[rank % len(LINES)],
        }
    return styles


def _rows(
    results: Sequence[Result], kind: str, wanted: Sequence[tuple[str, ...]], *, needed: set[str], least: int = 1
) -> Rows:
    """Select the methods of a plot in each setting; missing methods are reported in one line per setting.

    Args:
        results: All results.
        kind: Kind of plot, for messages.
        wanted: Labels of interventions; if alternatives are given, the first that exists is used.
        needed: The labels that the plot is about.
        least: Minimum number of them in a row.

    Raises:
        UserError: No setting has enough of them.
    """
    rows: Rows = {}
    for title, runs in runs_by_setting(results).items():
        by_size = sorted(by_group(runs), key=len)  # for equal labels, the spec with the most seeds is kept
        methods = {label(group[0]): group for group in by_size}
        names = [next((name for name in alternatives if name in methods), None) for alternatives in wanted]
        chosen = {name: methods[name] for name in names if name is not None}
        if len(needed & set(chosen)) >= least:
            rows[title] = chosen
    if not rows:
        raise UserError(
            f"no finished runs of the methods that {kind} needs; create them with: plastibench sweep {kind}"
        )
    for title, methods in rows.items():
        missing = [" or ".join(alternatives) for alternatives in wanted if not set(alternatives) & set(methods)]
        if missing:
            print(f"plastibench: {kind}: {title} has no runs of {', '.join(missing)}", file=sys.stderr)
    return rows


def _runs(rows: Rows) -> list[Result]:
    return [run for methods in rows.values() for runs in methods.values() for run in runs]


def _shown(styles: Mapping[str, Style], rows: Rows, order: Iterable[str]) -> dict[str, Style]:
    """The styles of the methods that are shown, in the order of the legend."""
    present = {name for methods in rows.values() for name in methods}
    return {name: styles[name] for name in order if name in present}
