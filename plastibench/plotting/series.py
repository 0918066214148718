"""Values of single runs over tasks or steps, and their mean and confidence interval over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from plastibench import leaderboard
from plastibench.plotting.recorded import Point
from plastibench.results.confidence import student
from plastibench.results.result import Result

Array = npt.NDArray[np.float64]
Series = list[tuple[float, float]]  # positions and values of one run
MIN_SEEDS = 3  # for an interval: with two seeds, t is 12.7 and the interval says nothing


def mean_and_interval(values: Array) -> tuple[Array, Array]:
    """Mean over seeds and half-width of its 95 % confidence interval (Student's t); NaN for fewer than three seeds.

    Args:
        values: One row per seed. [seeds, ...]
    """
    count = len(values)
    mean = values.mean(0)
    if count < MIN_SEEDS:
        return mean, np.full_like(mean, np.nan)
    return mean, student(count - 1) * values.std(0, ddof=1) / np.sqrt(count)


def align(series: Sequence[Series]) -> tuple[Array, Array]:
    """Reduce series of several runs to their common positions [P]; values are [seeds, P]."""
    runs = [dict(points) for points in series]
    common = [position for position in runs[0] if all(position in run for run in runs)] if runs else []
    return np.array(common, float), np.array([[run[position] for position in common] for run in runs], float)


def align_points(runs: Sequence[Sequence[Point]], unit: str) -> tuple[Array, Array]:
    """Reduce the points of several runs to those at a common task and position; see :func:`align`.

    Args:
        runs: The points of each run.
        unit: What positions count; for ``task``, positions are task numbers from 1.
    """
    tables = [{(point.task, point.position): point.value for point in points} for points in runs]
    common = [key for key in tables[0] if all(key in table for table in tables)] if tables else []
    positions = [task + 1 if unit == "task" else position for task, position in common]
    return np.array(positions, float), np.array([[table[key] for key in common] for table in tables], float)


def runs_by_setting(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Group results by setting: title, such as ``cl-digits, vit-nano``, to the runs that may be compared."""
    return {setting.title: setting.runs for setting in leaderboard.by_setting(results)}


def methods_by_setting(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Group results by setting and method: title to name to runs; names as in :func:`leaderboard.method_names`."""
    names = leaderboard.method_names(results)
    return {
        title: {names[group[0].group]: group for group in leaderboard.by_group(runs)}
        for title, runs in runs_by_setting(results).items()
    }


def score_series(run: Result) -> Series:
    """The score of a run over time.

    - Supervised: accuracy in % at the end of each task, by number of the task from 1.
    - RL: return by steps. With several tasks, only the last return of each, since returns fall at each task boundary.
    """
    if not run.is_rl:
        return [(task.task + 1, 100 * task.end) for task in run.tasks]
    points = run.returns
    if has_several_tasks(run):
        points = list({point.task: point for point in points}.values())
    return [(point.steps, point.value) for point in points]


def has_several_tasks(run: Result) -> bool:
    """Whether an RL run has more than one task."""
    return len({point.task for point in run.returns}) > 1


def drop_series(run: Result) -> Series:
    """Drop at each intervention: percentage points of accuracy by number of the new task, or return by steps."""
    if run.is_rl:
        return [(event.steps, event.drop) for event in run.events if event.drop is not None]
    return [(task.task + 1, 100 * task.drop) for task in run.tasks if task.drop is not None]


def metric_series(run: Result, metric: str, role: str) -> Series:
    """A plasticity metric of the network with a role: at the end of each task, or over steps for RL."""
    records = [record for record in run.plasticity if record.role == role and (run.is_rl or record.phase == "end")]
    found = [(record.position if run.is_rl else record.task + 1, record.metrics.get(metric)) for record in records]
    return [(position, value) for position, value in found if position is not None and value is not None]
