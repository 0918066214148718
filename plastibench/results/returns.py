"""Return metrics of an RL run, computed from its evaluations (pure functions)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plastibench.results.accuracy import mean

Floats = npt.NDArray[np.float64]
FINAL = 3  # number of last evaluations that are averaged for the final return


@dataclass
class Evaluation:
    """One evaluation: full episodes of the greedy policy.

    Attributes:
        task: Number of the task, from 0.
        steps: Steps of the agent since the start of the run.
        value: Mean return of the episodes.
        bias: Bias of the critic: mean over visited states of its value minus the discounted return that followed. For
            a critic that includes entropy, the episodes use sampled actions.
    """

    task: int
    steps: int
    value: float
    bias: float


@dataclass
class Event:
    """An intervention that was evaluated.

    Attributes:
        task: Number of the task, from 0.
        steps: Steps of the agent before the intervention.
        update: Updates before the intervention.
        before: Return right before it.
        after: Return right after it, in episodes with the same seeds.
    """

    task: int
    steps: int
    update: int
    before: float
    after: float


def discounted(rewards: Sequence[float], gamma: float, tail: float = 0.0) -> Floats:
    """Discounted return from each step of an episode. [T].

    Args:
        rewards: [T]
        gamma: Discount per step.
        tail: Expected return after the last step; 0 for a terminal state.
    """
    found = np.empty(len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        tail = rewards[step] + gamma * tail
        found[step] = tail
    return found


def event_values(event: Event, curve: Sequence[Evaluation], following: Event | None) -> dict[str, float | None]:
    """Loss and recovery of the return after an intervention.

    They are measured in a window from the intervention to the next one or to the end of the task.

    Args:
        event: The intervention.
        curve: All evaluations, in order. An evaluation at the step of an intervention was made after it.
        following: The next intervention, if any.

    Returns:
        - ``drop``: return lost right at the intervention,
        - ``lowest``: lowest return in the window, including the one right after the intervention,
        - ``recovery``: steps until an evaluation reaches the return before the intervention again; None if none does.
    """
    until = following.steps if following is not None and following.task == event.task else math.inf
    window = [point for point in curve if point.task == event.task and event.steps <= point.steps < until]
    reached = (point.steps - event.steps for point in window if point.value >= event.before)
    recovery = 0 if event.after >= event.before else next(reached, None)
    lowest = min([event.after, *(point.value for point in window)])
    return {"drop": event.before - event.after, "lowest": lowest, "recovery": recovery}


def summary(
    curve: Sequence[Evaluation], events: Sequence[Event], bounds: tuple[float, float] | None = None
) -> dict[str, float | None]:
    """Summarize a run; see :class:`plastibench.results.result.Summary`.

    Args:
        curve: All evaluations, in order.
        events: The interventions that were evaluated.
        bounds: Returns of a random and an optimal policy, for normalized returns; None if unknown.
    """
    tasks = sorted({point.task for point in curve})
    ends = [_end(curve, task) for task in tasks]
    after = [event_values(event, curve, following) for event, following in _windows(events)]
    final = ends[-1]
    low, high = bounds or (0.0, 1.0)
    normalized = None if bounds is None or final is None else (final - low) / (high - low)
    return {
        "final_return": final,
        "average_return": mean([point.value for point in curve]),
        "average_task_return": mean(ends),
        "normalized_return": normalized,
        "mean_drop": mean([found["drop"] for found in after]),
        "mean_lowest": mean([found["lowest"] for found in after]),
        "mean_recovery_steps": mean([found["recovery"] for found in after]),
        "unrecovered_fraction": mean([float(found["recovery"] is None) for found in after]),
        "final_q_bias": mean([point.bias for point in curve][-FINAL:]),
    }


def result(
    curve: Sequence[Evaluation], events: Sequence[Event], bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """The trainer's part of a result: ``summary``, ``returns`` and ``events``."""
    return {
        "summary": summary(curve, events, bounds),
        "returns": [vars(point) for point in curve],
        "events": [{**vars(event), **event_values(event, curve, following)} for event, following in _windows(events)],
    }


def _windows(events: Sequence[Event]) -> list[tuple[Event, Event | None]]:
    """Each event with the next one."""
    return list(zip(events, [*events[1:], None], strict=True)) if events else []


def _end(curve: Sequence[Evaluation], task: int) -> float | None:
    values = [point.value for point in curve if point.task == task]
    return mean(values[1:][-FINAL:] or values)  # the first one precedes training on the task
