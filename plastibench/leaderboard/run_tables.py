"""The tables at the end of ``run``: results by task or step; runs that differ only in their seed share a row."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from plastibench.leaderboard.settings import by_group, label, warnings
from plastibench.results.confidence import PLUS_MINUS, mean_ci
from plastibench.results.result import Result
from plastibench.utils.tables import fitting_columns, format_recovery, hidden_columns, percent, text_table

_SHOWN = 10  # number of tasks or evaluations that are shown
_ACCURACY_LEGENDS = {
    "final": "accuracy after the last task",
    "drop": "percentage points lost right at the intervention, mean over task boundaries",
    "recovered in": "epochs until accuracy recovers to its value before the boundary, and percentage of boundaries "
    "after which it never does",
}
_RETURN_LEGENDS = {
    "return": "mean of full greedy episodes",
    "final": "mean return of the last evaluations of the last task, at most three",
    "drop": "return lost right at the intervention, mean over interventions",
    "recovered in": "steps until the return recovers to its value before the intervention, and percentage of "
    "interventions after which it never does",
    "lowest": "lowest return between an intervention and the next one",
}
_LEGENDS = {
    "revived %": "percentage of units that were reinitialized",
    "cost %": "percentage of the CPU time spent in interventions",
}
_WIDEST = 120  # characters of a paragraph
_Columns = dict[str, list[str]]  # heading to cells


def comparison(found: Sequence[Result], width: int = 0) -> str:
    """Compare the runs of one env and agent in tables with a legend, best final accuracy or return first.

    Args:
        found: The runs.
        width: Of the terminal; columns that do not fit are left out. 0: show all columns.
    """
    is_rl = found[0].is_rl
    groups = sorted(by_group(found), key=final, reverse=True)
    points = [f"{point.steps / 1000:g}k" for point in found[0].returns] or [
        str(task.task + 1) for task in found[0].tasks
    ]
    fixed = _fixed_columns(groups, is_rl)
    names = [_marked(runs) for runs in groups]
    title = "return after steps" if is_rl else "accuracy % after task"
    for shown, kept in _layouts(len(points), fixed):
        chosen = {heading: cells for heading, cells in fixed.items() if heading in kept}
        header = [title, *(points[index] for index in shown), *chosen]
        curves = [_curve(runs, shown, is_rl) for runs in groups]
        rows = [
            [name, *curve, *(cells[row] for cells in chosen.values())]
            for row, (name, curve) in enumerate(zip(names, curves, strict=True))
        ]
        if fitting_columns(header, rows, width) == len(header):
            break
    tables = [text_table(header, rows, width)]
    if not is_rl and (drops := _drops(groups, width)):
        tables.append(drops)
    tables += [
        textwrap.fill(f"! {label(runs[0])}: {warning}", min(width or _WIDEST, _WIDEST))
        for runs in groups
        for warning in warnings(runs)
    ]
    meanings = {**(_RETURN_LEGENDS if is_rl else _ACCURACY_LEGENDS), **_LEGENDS}
    legend = [f"{heading}: {text}" for heading, text in meanings.items() if heading in (*chosen, "return")]
    legend += [PLUS_MINUS] if any("±" in cell for cells in chosen.values() for cell in cells) else []
    legend += hidden_columns(len(fixed) - len(chosen))
    tables.append(textwrap.fill(f"{'; '.join(legend)}.", min(width or _WIDEST, _WIDEST)))
    return "\n\n".join(tables)


def _layouts(count: int, fixed: _Columns) -> Iterator[tuple[list[int], list[str]]]:
    """Points of the curve and other columns to show, from the widest table to the narrowest."""
    kept = list(fixed)
    shown = _evenly_spaced(count)
    yield shown, kept
    while len(kept) > 3:
        kept = kept[:-1]
        yield shown, kept
    for size in range(len(shown) - 1, 1, -1):
        yield _evenly_spaced(count, size), kept
    while len(kept) > 1:
        kept = kept[:-1]
        yield _evenly_spaced(count, 2), kept


def _marked(runs: Sequence[Result]) -> str:
    """The name of a method, with a mark if a note below the table is about it."""
    return f"{label(runs[0])} !" if warnings(runs) else label(runs[0])


def _curve(runs: list[Result], shown: Sequence[int], is_rl: bool) -> list[str]:
    if is_rl:
        return [f"{_average(run.returns[index].value for run in runs):.4g}" for index in shown]
    return [percent(_average(run.tasks[task].end for run in runs), 0) for task in shown]


def _fixed_columns(groups: Sequence[list[Result]], is_rl: bool) -> _Columns:
    """The columns that do not depend on the number of tasks, most important first."""
    found: _Columns = {}
    if is_rl:
        found["final"], found["drop"] = (
            [_returns(runs, name) for runs in groups] for name in ("final_return", "mean_drop")
        )
    else:
        found["final"], found["drop"] = (
            [mean_ci([getattr(run.summary, name) for run in runs]) for runs in groups]
            for name in ("final_accuracy", "mean_drop")
        )
    found["recovered in"] = [recovery(runs) for runs in groups]
    if is_rl:
        found["lowest"] = [_returns(runs, "mean_lowest") for runs in groups]
    found["revived %"] = [_revived(runs) for runs in groups]
    found["cost %"] = [_cost(runs) for runs in groups]
    return found


def _drops(groups: Sequence[list[Result]], width: int) -> str:
    """Table of the drop by task boundary; empty if nothing intervened or there is one task."""
    count = len(groups[0][0].tasks)
    intervened = [runs for runs in groups if any(run.interventions for run in runs)]
    if count < 2 or not intervened:
        return ""
    for size in range(_SHOWN, 1, -1):
        boundaries = [task for task in _evenly_spaced(count, size) if task]
        rows = [
            [_marked(runs), *(percent(_average(run.tasks[task].drop for run in runs)) for task in boundaries)]
            for runs in intervened
        ]
        header = ["drop before task", *(str(task + 1) for task in boundaries)]
        if fitting_columns(header, rows, width) == len(header):
            break
    return text_table(header, rows, width)


def _evenly_spaced(count: int, size: int = _SHOWN) -> list[int]:
    """Indices of up to ``size`` evenly spaced items out of ``count``, including the first and the last."""
    return sorted({round(i * (count - 1) / (size - 1)) for i in range(size)})


def _returns(runs: list[Result], name: str) -> str:
    return mean_ci([getattr(run.summary, name) for run in runs], scale=1, digits=2)


def final(runs: list[Result]) -> float:
    """Mean over runs of the final accuracy or return."""
    return _average(run.final for run in runs) or 0.0


def recovery(runs: list[Result]) -> str:
    """Epochs or steps until the value before an intervention is reached again, and how often it never is."""
    unit, digits = ("steps", 0) if runs[0].is_rl else ("epochs", 1)
    never = _average(run.summary.unrecovered_fraction for run in runs)
    time = _average(getattr(run.summary, f"mean_recovery_{unit}") for run in runs)
    return format_recovery(time, never, unit, digits)


def _revived(runs: list[Result]) -> str:
    return percent(_average(record.revived_fraction for run in runs for record in run.interventions), 0)


def _cost(runs: list[Result]) -> str:
    return percent(_average(run.cost.intervention_fraction for run in runs))


def _average(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
