"""The paper's Figures 2, 4 and 5, from whatever runs of them there are: a row per env and agent."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plastibench.config.errors import UserError
from plastibench.leaderboard import by_group, label
from plastibench.plotting.caption import caption
from plastibench.plotting.curves import label_axes, line
from plastibench.plotting.over_seeds import contests, drops, scores, together
from plastibench.plotting.overview import gain, label_gain
from plastibench.plotting.pareto import label_axes as label_trade_off
from plastibench.plotting.pareto import point
from plastibench.plotting.style import (
    COLOURS,
    LINES,
    MARKERS,
    Style,
    count_steps,
    count_tasks,
    finish,
    handles,
    panels,
    styles,
    title,
)
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Setting = tuple[str, str]
Groups = dict[str, list[Result]]  # label of an intervention to its runs

_FIG2 = ("none", "reset-mlp", "reset-mlp-qkv", "reset-linear", "reset-layernorm", "reset")
_FIG4: tuple[tuple[str, ...], ...] = (  # of several the first that is there
    *(("none",), ("reset",), ("redo",), ("shrink-perturb-keep80",), ("shrink-perturb-keep20",)),
    ("rnr", "rnr criterion=regrama"),  # the paper's choice in its first row, and in its second
)
_ENDS = {"none", "reset"}  # between which a figure's own interventions lie
THRESHOLDS = ("redo", "regrama", "regrama-post", "regrama-weight")  # the criteria that compare with tau
_CRITERIA = {"redo": "ReDo", "regrama": "ReGraMa", "low-gradient-quantile": "Low Gradient Quantile"}
_COLOUR_OF = {"redo": 2, "regrama": 5, "low-gradient-quantile": 1, "random": 3, "weight-norm": 4}  # others: 0
_REFERENCES: dict[str, dict[str, Any]] = {
    "none": {"color": "#777777", "marker": "o", "linestyle": "-"},
    "reset": {"color": "#777777", "marker": "s", "linestyle": "--"},
}


def fig2(found: Sequence[Result]) -> Figure:
    """Accuracy after each task with parts of the network reset at every switch, and its gain over no reset.

    Args:
        found: Results; those of the figure's interventions are taken.

    Raises:
        UserError: There are none.
    """
    rows = _rows(found, "fig2", [(name,) for name in _FIG2], needed=set(_FIG2) - _ENDS)
    looks = styles(found)
    figure, axes = panels(len(rows), 2, height=3.4)
    for (names, groups), (left, right) in zip(rows.items(), axes, strict=True):
        for name, runs in groups.items():
            line(left, *together([scores(run) for run in runs]), looks[name])
            gain(right, runs, groups.get("none", []), looks[name])
        title(left, ", ".join(names), 52)
        label_axes(left, _first(groups))
        label_gain(right)
        right.set_visible("none" in groups and not _first(groups).is_rl)
    words = "Parts of the network that are reset whenever the task changes."
    return finish(figure, handles(_looks(looks, rows, _FIG2)), caption(_all(rows), words))


def fig4(found: Sequence[Result]) -> Figure:
    """Accuracy after each task of RnR and its rivals, and what each switch costs at once.

    Args:
        found: Results; those of the figure's interventions are taken.

    Raises:
        UserError: There are none.
    """
    rows = _rows(found, "fig4", _FIG4, needed=set(itertools.chain(*_FIG4)) - _ENDS)
    looks = styles(found)
    figure, axes = panels(len(rows), 2, height=3.2)
    for (names, groups), (left, right) in zip(rows.items(), axes, strict=True):
        for name, runs in groups.items():
            line(left, *together([scores(run) for run in runs]), looks[name])
            places, values = together([drops(run) for run in runs])
            if values.size:
                line(right, places, values, looks[name])
        title(left, ", ".join(names), 52)
        label_axes(left, _first(groups))
        right.set_title("lost at once, right at the intervention")
        if _first(groups).is_rl:
            count_steps(right)
            right.set(xlabel="steps", ylabel="drop in return")
        else:
            count_tasks(right)
            right.set(xlabel="task that begins", ylabel="drop in accuracy, points")
    return finish(figure, handles(_looks(looks, rows, itertools.chain(*_FIG4))), caption(_all(rows)))


def fig5(found: Sequence[Result]) -> Figure:
    """RnR with several scores of what to revive: accuracy after each task, and final accuracy against drop.

    Args:
        found: Results; of ``rnr`` those that differ in criterion and threshold alone are taken, and ``none`` and
            ``reset``, which are drawn in grey.

    Raises:
        UserError: There are none.
    """
    names = {label(run): name for run in found if (name := revived_by(run))}
    wanted = [(name,) for name in ("none", "reset", *sorted(names, key=names.__getitem__))]
    rows = _rows(found, "fig5", wanted, needed=set(names), least=2)  # of one there is nothing to compare
    looks = {**_REFERENCES, **_revivers({label(run): run for run in found if label(run) in names})}
    figure, axes = panels(len(rows), 2, height=3.4)
    for (contest, groups), (left, right) in zip(rows.items(), axes, strict=True):
        for name, runs in groups.items():
            line(left, *together([scores(run) for run in runs]), looks[name])
            point(right, runs, looks[name])
        title(left, ", ".join(contest), 52)
        label_axes(left, _first(groups))
        label_trade_off(right, _first(groups))
        right.set_title("final against drop")
    drawn = _looks(looks, rows, [name for (name,) in wanted])
    entries = handles({names.get(name, name): style for name, style in drawn.items()})
    words = "RnR, with its revive score and (in brackets) threshold or quantile; grey: no intervention and full resets."
    return finish(figure, entries, caption(_all(rows), words, intervals="bands and bars"))


def revived_by(run: Result) -> str:
    """``ReGraMa (1.0)`` for RnR with this score and threshold and else its defaults; empty for all other runs."""
    if run.intervention != "rnr" or run.every or run.schedule:
        return ""
    if set(run.changed.intervention) - {"criterion", "tau", "quantile"}:
        return ""
    options = run.options.intervention
    criterion = options.get("criterion", "")
    return f"{_CRITERIA.get(criterion, criterion)} ({options['tau' if criterion in THRESHOLDS else 'quantile']})"


def _revivers(runs: Mapping[str, Result]) -> dict[str, Style]:
    """A colour for each score, a line for each of its thresholds, and a marker for each of both."""
    looks: dict[str, Style] = {}
    ranks: dict[str, int] = {}
    for number, name in enumerate(sorted(runs, key=lambda name: revived_by(runs[name]))):
        criterion = runs[name].options.intervention["criterion"]
        rank = ranks[criterion] = ranks.get(criterion, -1) + 1
        looks[name] = {
            "color": COLOURS[_COLOUR_OF.get(criterion, 0)],
            "marker": MARKERS[1:][number % (len(MARKERS) - 1)],  # the first is that of reset
            "linestyle": LINES[rank % len(LINES)],
        }
    return looks


def _rows(
    found: Sequence[Result], figure: str, wanted: Sequence[tuple[str, ...]], *, needed: set[str], least: int = 1
) -> dict[Setting, Groups]:
    """What a figure shows of each env and agent; what is missing is told in one line.

    Args:
        found: All results.
        figure: Its name.
        wanted: Labels of interventions; of several in one place the first that is there.
        needed: Those that the figure is about.
        least: A row has so many of them.

    Raises:
        UserError: There is no row.
    """
    everything = {  # of specs that only differ in what a label does not say, the one with most seeds
        names: {label(runs[0]): runs for runs in sorted(by_group(results), key=len)}
        for names, results in contests(found).items()
    }
    rows: dict[Setting, Groups] = {}
    for contest, groups in everything.items():
        names = [next((name for name in several if name in groups), None) for several in wanted]
        chosen = {name: groups[name] for name in names if name is not None}
        if len(needed & set(chosen)) >= least:
            rows[contest] = chosen
    if not rows:
        raise UserError(f"no finished run of what {figure} shows; make them with: plastibench sweep {figure}")
    for contest, groups in rows.items():
        missing = [" or ".join(several) for several in wanted if not set(several) & set(groups)]
        if missing:
            print(f"plastibench: {figure}: {', '.join(contest)} lacks {', '.join(missing)}", file=sys.stderr)
    return rows


def _first(groups: Groups) -> Result:
    return next(iter(groups.values()))[0]


def _all(rows: Mapping[Setting, Groups]) -> list[Result]:
    return [run for groups in rows.values() for runs in groups.values() for run in runs]


def _looks(looks: Mapping[str, Style], rows: Mapping[Setting, Iterable[str]], order: Iterable[str]) -> dict[str, Style]:
    """The styles of what is shown, as the figure lists it."""
    present = {name for groups in rows.values() for name in groups}
    return {name: looks[name] for name in order if name in present}
