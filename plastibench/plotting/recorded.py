"""Every metric that a run recorded, from its result and ``metrics.csv``, as points over tasks, epochs or steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from plastibench.config import renamed
from plastibench.results import metrics_csv
from plastibench.results.result import Result, Task

Unit = Literal["task", "epoch", "steps"]


class Point(NamedTuple):
    """A value of a run.

    Attributes:
        task: Number of the task, from 0.
        position: Epochs or agent steps since the start of the run.
        value: The value.
    """

    task: int
    position: float
    value: float


_OF_TASK: dict[str, Callable[[Task], float | None]] = {
    "drop": lambda task: task.drop,
    "accuracy-after": lambda task: task.after,
    "agreement": lambda task: task.agreement,
    "output-kl": lambda task: task.output_kl,
    "recovery": lambda task: task.recovery,
    "train-accuracy": lambda task: task.train_accuracy,
    "auc": lambda task: task.auc,
}


def names(results: Iterable[Result]) -> list[str]:
    """Return the metrics that at least one run recorded; names of a network's or layer's metrics have a prefix."""
    found: dict[str, None] = {}
    for run in results:
        found.update(dict.fromkeys(_from_result(run)))
        found.update(dict.fromkeys(name for name in _table(run) if name not in found))
    return list(found)


def points(run: Result, metric: str) -> list[Point]:
    """All values of a metric, in order; empty if the run did not record it.

    A plasticity metric without a prefix belongs to the first network; in task streams, it is measured at the end of
    each task.
    """
    found = _from_result(run).get(metric)
    return found if found is not None else list(_table(run).get(metric, ()))


def unit(runs: Sequence[Result], metric: str) -> Unit:
    """Return what the x axis counts: tasks if no run has two values in a task, otherwise epochs; for RL, steps."""
    if runs[0].is_rl:
        return "steps"
    tasks = [[point.task for point in points(run, metric)] for run in runs]
    return "task" if all(len(set(of)) == len(of) for of in tasks) else "epoch"


def starts(run: Result) -> list[float]:
    """Epochs before each task of a run on a task stream."""
    return list(itertools.accumulate((task.curve[-1][0] for task in run.tasks[:-1]), initial=0.0))


def _from_result(run: Result) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    if run.is_rl:
        found["return"] = [Point(point.task, point.steps, point.value) for point in run.returns]
        biases = [(point, point.bias) for point in run.returns]
        found["q-bias"] = [Point(point.task, point.steps, bias) for point, bias in biases if bias is not None]
        for name, key in (("drop", "drop"), ("return-after", "after"), ("recovery", "recovery")):
            values = [(event, getattr(event, key)) for event in run.events]
            found[name] = [Point(event.task, event.steps, value) for event, value in values if value is not None]
    else:
        found["accuracy"] = [Point(*evaluation) for evaluation in run.evaluations()]
        for name, value_of in _OF_TASK.items():
            valued = [(task, value_of(task), start) for task, start in zip(run.tasks, starts(run), strict=True)]
            found[name] = [Point(task.task, start, value) for task, value, start in valued if value is not None]
    first = run.plasticity[0].role if run.plasticity else ""
    for record in run.plasticity:
        if record.role == first and (run.is_rl or record.phase == "end"):
            for name, value in record.metrics.items():
                if value is not None:
                    position = float(record.position or 0)
                    found.setdefault(name, []).append(Point(record.task, position, value))
    return {name: some for name, some in found.items() if some}


def _table(run: Result) -> Mapping[str, Sequence[Point]]:
    path = None if run.folder is None else run.folder / metrics_csv.NAME
    if path is None or not path.is_file():
        return {}
    return _read(path, path.stat().st_mtime_ns, None if run.is_rl else tuple(starts(run)))


@functools.lru_cache(maxsize=256)
def _read(path: Path, _changed: int, task_starts: tuple[float, ...] | None) -> Mapping[str, Sequence[Point]]:
    """Map each metric to its points; if it has several phases, prefer ``evaluation``, then ``training``."""
    by_phase: dict[str, dict[str, list[Point]]] = {}
    for row in metrics_csv.read(path):
        start = 0.0 if task_starts is None or row.task >= len(task_starts) else task_starts[row.task]
        head, slash, last = row.metric.rpartition("/")
        name = f"{head}{slash}{renamed.METRICS.get(last, last)}"
        by_phase.setdefault(name, {}).setdefault(row.phase, []).append(Point(row.task, start + row.position, row.value))
    order = ("evaluation", "training", "end", "after")
    return {
        name: next((phases[phase] for phase in order if phase in phases), next(iter(phases.values())))
        for name, phases in by_phase.items()
    }
