"""The tables at the end of ``run``: how it went task by task; runs that differ in their seed alone share a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plastibench.leaderboard.settings import by_group, label
from plastibench.results.result import Result
from plastibench.utils.tables import format_recovery, mean_std, percent, text_table

_SHOWN_TASKS = 10


def comparison(found: Sequence[Result]) -> str:
    """The tables at the end of ``run``, with what they mean."""
    if found[0].is_rl:
        return f"{_return_comparison(found)}\n\n{_EXPLANATION_OF_RETURNS}"
    return f"{_accuracy_comparison(found)}\n\n{EXPLANATION}"


def _return_comparison(found: Sequence[Result]) -> str:
    """Return along the way, what followed each intervention, what it did and cost."""
    points = found[0].returns
    shown = sorted({round(i * (len(points) - 1) / (_SHOWN_TASKS - 1)) for i in range(_SHOWN_TASKS)})
    header = ["return after steps", *(f"{points[place].steps / 1000:g}k" for place in shown)]
    header += ["final", "drop", "lowest", "recovery", "revived %", "cost %"]
    rows = []
    for runs in by_group(found):
        curve = [f"{_average(run.returns[place].value for run in runs):.4g}" for place in shown]
        rows.append([label(runs[0]), *curve, *_returns(runs, "final_return", "mean_drop", "mean_lowest")])
        rows[-1] += [_steps(runs), _revived(runs), _cost(runs)]
    return text_table(header, rows)


def _accuracy_comparison(found: Sequence[Result]) -> str:
    """Accuracy task by task, drop by switch, what each intervention did and cost."""
    tasks = len(found[0].tasks)
    shown = sorted(
        {round(i * (tasks - 1) / (min(tasks, _SHOWN_TASKS) - 1 or 1)) for i in range(min(tasks, _SHOWN_TASKS))}
    )
    header = ["accuracy % after task", *(str(task + 1) for task in shown)]
    header += ["final", "drop", "recovery", "revived %", "cost %"]
    rows = []
    for runs in by_group(found):
        ends = [percent(_average(run.tasks[task].end for run in runs), 0) for task in shown]
        final = mean_std([run.summary.final_accuracy for run in runs])
        drop = mean_std([run.summary.mean_drop for run in runs])
        rows.append([label(runs[0]), *ends, final, drop, recovery(runs), _revived(runs), _cost(runs)])
    tables = [text_table(header, rows)]
    switches = [task for task in shown if task]
    acted = [runs for runs in by_group(found) if any(run.interventions for run in runs)]
    if switches and acted:
        drops = [
            [label(runs[0]), *(percent(_average(run.tasks[task].drop for run in runs)) for task in switches)]
            for runs in acted
        ]
        tables.append(text_table(["drop before task", *(str(task + 1) for task in switches)], drops))
    return "\n\n".join(tables)


EXPLANATION = (
    "drop: points of accuracy lost right at the intervention, mean over switches; recovery: epochs until the accuracy\n"
    "before the switch is back (in brackets: share of switches where it is not); revived: share of units re-drawn;\n"
    "cost: share of the run's time that the intervention took."
)


_EXPLANATION_OF_RETURNS = (
    "return: mean of full greedy episodes; final: mean of the last three evaluations; drop: return lost right at the\n"
    "intervention, mean over them; lowest: smallest return between it and the next; recovery: steps until the return\n"
    "before it is back (in brackets: share of interventions after which it is not); revived: share of units re-drawn;\n"
    "cost: share of the run's time that the intervention took."
)


def _returns(runs: list[Result], *names: str) -> list[str]:
    return [mean_std([getattr(run.summary, name) for run in runs], scale=1, digits=2) for name in names]


def _steps(runs: list[Result]) -> str:
    return _back_after(runs, "mean_recovery_steps", 0)


def final(runs: list[Result]) -> float:
    """Mean over runs of the accuracy after the last task, or of the last returns."""
    return _average(run.final for run in runs) or 0.0


def recovery(runs: list[Result]) -> str:
    """Epochs or steps until the score before an intervention is back, and how often it never is."""
    return _steps(runs) if runs[0].is_rl else _back_after(runs, "mean_recovery_epochs", 1)


def _back_after(runs: list[Result], name: str, digits: int) -> str:
    never = _average(run.summary.unrecovered_fraction for run in runs)
    return format_recovery(_average(getattr(run.summary, name) for run in runs), never, digits)


def _revived(runs: list[Result]) -> str:
    return percent(_average(record.revived_fraction for run in runs for record in run.interventions), 0)


def _cost(runs: list[Result]) -> str:
    return percent(_average(run.cost.intervention_fraction for run in runs))


def _average(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
