"""What runs that differ in their seed alone have in common: means, intervals, and series side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from plastibench import leaderboard
from plastibench.results.confidence import student
from plastibench.results.result import Result

Array = npt.NDArray[np.float64]
Series = list[tuple[float, float]]  # of one run: places and values
ENOUGH = 3  # seeds for an interval: with two, t is 12.7 and the interval says nothing


def interval(values: Array) -> tuple[Array, Array]:
    """Mean and half of the 95 % confidence interval over seeds, by Student's t; NaN for fewer than three seeds.

    Args:
        values: [seeds, ...].
    """
    count = len(values)
    mean = values.mean(0)
    if count < ENOUGH:
        return mean, np.full_like(mean, np.nan)
    return mean, student(count - 1) * values.std(0, ddof=1) / np.sqrt(count)


def together(series: Sequence[Series]) -> tuple[Array, Array]:
    """Series of several runs at the places that all of them have: places [P], values [seeds, P]."""
    runs = [dict(points) for points in series]
    places = [place for place in runs[0] if all(place in run for run in runs)] if runs else []
    return np.array(places, float), np.array([[run[place] for place in places] for run in runs], float)


def contests(found: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by env and agent with their options: only what may be compared stands together."""
    return {(contest.env, contest.agent): contest.runs for contest in leaderboard.by_setting(found)}


def scores(run: Result) -> Series:
    """What a run is judged by, in the course of time.

    Of a classifier accuracy in % at the end of each task, against the task's number from 1; of an agent that acts the
    return against steps, and where its tasks change the last return of each: a line through all would be a saw.
    """
    if not run.is_rl:
        return [(task.task + 1, 100 * task.end) for task in run.tasks]
    points = run.returns
    if changes(run):
        points = list({point.task: point for point in points}.values())
    return [(point.steps, point.value) for point in points]


def changes(run: Result) -> bool:
    """Whether an agent that acts meets more than one task."""
    return len({point.task for point in run.returns}) > 1


def drops(run: Result) -> Series:
    """Points of accuracy lost right at each switch, against the number of the task that follows; or return by steps."""
    if run.is_rl:
        return [(event.steps, event.drop) for event in run.events if event.drop is not None]
    return [(task.task + 1, 100 * task.drop) for task in run.tasks if task.drop is not None]


def moments(run: Result, metric: str, role: str) -> Series:
    """A plasticity metric of one network at the end of each task, or over steps where the agent acts."""
    records = [record for record in run.plasticity if record.role == role and (run.is_rl or record.phase == "end")]
    found = [(record.position if run.is_rl else record.task + 1, record.metrics.get(metric)) for record in records]
    return [(position, value) for position, value in found if position is not None and value is not None]
