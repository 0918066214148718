"""The tables at the end of ``run``: results by task or step; runs that differ only in their seed share a row."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from plastibench.leaderboard.settings import by_group, label, warnings
from plastibench.results.confidence import PLUS_MINUS, mean_ci
from plastibench.results.result import Result
from plastibench.utils.tables import format_recovery, percent, text_table

_SHOWN = 10  # number of tasks or evaluations that are shown
_ACCURACY_LEGEND = (
    "final: accuracy after the last task; drop: percentage points lost right at the intervention, mean over task "
    "boundaries; recovery: epochs until the accuracy is back at its value before the boundary (in parentheses: "
    "percentage of boundaries without recovery)"
)
_RETURN_LEGEND = (
    "return: mean of full greedy episodes; final: mean of the last three evaluations; drop: return lost right at the "
    "intervention, mean over interventions; lowest: lowest return between an intervention and the next one; recovery: "
    "steps until the return is back at its value before the intervention (in parentheses: percentage of interventions "
    "without recovery)"
)
_LEGEND = (
    "revived: percentage of units that were reinitialized; cost: percentage of the CPU time spent in interventions; "
    f"{PLUS_MINUS}"
)


def comparison(found: Sequence[Result]) -> str:
    """Compare the runs of one env and agent in tables with a legend."""
    is_rl = found[0].is_rl
    tables = _return_comparison(found) if is_rl else _accuracy_comparison(found)
    legend = f"{_RETURN_LEGEND if is_rl else _ACCURACY_LEGEND}; {_LEGEND}."
    noted = [f"! {label(runs[0])}: {warning}" for runs in by_group(found) for warning in warnings(runs)]
    return "\n\n".join([tables, *(textwrap.fill(note, 110) for note in noted), textwrap.fill(legend, 110)])


def _return_comparison(found: Sequence[Result]) -> str:
    """Returns over steps, and the effect and cost of interventions."""
    points = found[0].returns
    shown = _evenly_spaced(len(points))
    header = ["return after steps", *(f"{points[index].steps / 1000:g}k" for index in shown)]
    header += ["final", "drop", "lowest", "recovery", "revived %", "cost %"]
    rows = []
    for runs in by_group(found):
        curve = [f"{_average(run.returns[index].value for run in runs):.4g}" for index in shown]
        rows.append([_marked(runs), *curve, *_returns(runs, "final_return", "mean_drop", "mean_lowest")])
        rows[-1] += [_recovery_steps(runs), _revived(runs), _cost(runs)]
    return text_table(header, rows)


def _accuracy_comparison(found: Sequence[Result]) -> str:
    """Accuracy by task, drop by task boundary, and the effect and cost of interventions."""
    shown = _evenly_spaced(len(found[0].tasks))
    header = ["accuracy % after task", *(str(task + 1) for task in shown)]
    header += ["final", "drop", "recovery", "revived %", "cost %"]
    rows = []
    for runs in by_group(found):
        ends = [percent(_average(run.tasks[task].end for run in runs), 0) for task in shown]
        final = mean_ci([run.summary.final_accuracy for run in runs])
        drop = mean_ci([run.summary.mean_drop for run in runs])
        rows.append([_marked(runs), *ends, final, drop, recovery(runs), _revived(runs), _cost(runs)])
    tables = [text_table(header, rows)]
    boundaries = [task for task in shown if task]
    intervened = [runs for runs in by_group(found) if any(run.interventions for run in runs)]
    if boundaries and intervened:
        drops = [
            [_marked(runs), *(percent(_average(run.tasks[task].drop for run in runs)) for task in boundaries)]
            for runs in intervened
        ]
        tables.append(text_table(["drop before task", *(str(task + 1) for task in boundaries)], drops))
    return "\n\n".join(tables)


def _marked(runs: Sequence[Result]) -> str:
    """The name of a method, with a mark if a note below the table is about it."""
    return f"{label(runs[0])} !" if warnings(runs) else label(runs[0])


def _evenly_spaced(count: int) -> list[int]:
    """Indices of up to ten evenly spaced items out of ``count``, including the first and the last."""
    return sorted({round(i * (count - 1) / (_SHOWN - 1)) for i in range(_SHOWN)})


def _returns(runs: list[Result], *names: str) -> list[str]:
    return [mean_ci([getattr(run.summary, name) for run in runs], scale=1, digits=2) for name in names]


def _recovery_steps(runs: list[Result]) -> str:
    return _recovery(runs, "mean_recovery_steps", 0)


def final(runs: list[Result]) -> float:
    """Mean over runs of the final accuracy or return."""
    return _average(run.final for run in runs) or 0.0


def recovery(runs: list[Result]) -> str:
    """Epochs or steps until the value before an intervention is reached again, and how often it never is."""
    return _recovery_steps(runs) if runs[0].is_rl else _recovery(runs, "mean_recovery_epochs", 1)


def _recovery(runs: list[Result], name: str, digits: int) -> str:
    never = _average(run.summary.unrecovered_fraction for run in runs)
    return format_recovery(_average(getattr(run.summary, name) for run in runs), never, digits)


def _revived(runs: list[Result]) -> str:
    return percent(_average(record.revived_fraction for run in runs for record in run.interventions), 0)


def _cost(runs: list[Result]) -> str:
    return percent(_average(run.cost.intervention_fraction for run in runs))


def _average(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
