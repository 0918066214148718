"""Performance of an agent that acts, from the evaluations of a run (pure functions)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plastibench.results.accuracy import mean

Floats = npt.NDArray[np.float64]
FINAL = 3  # the last evaluations, whose mean is the final return


@dataclass
class Evaluation:
    """One evaluation: full episodes of the greedy policy.

    Attributes:
        task: Number of the task in which it acted.
        steps: Steps of the agent since the start of the run.
        value: Mean return of the episodes.
        bias: Mean of what the critic expected minus the discounted return that followed, over all states visited, for
            a critic that counts entropy those of episodes with drawn actions.
    """

    task: int
    steps: int
    value: float
    bias: float


@dataclass
class Event:
    """An intervention that was evaluated.

    Attributes:
        task: Number of the task.
        steps: Steps of the agent when it happened.
        update: Updates likewise.
        before: Return just before it.
        after: Return just after it, on the same episodes' seeds.
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
        tail: What is expected after the last step; 0 where it ended in a terminal state.
    """
    found = np.empty(len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        tail = rewards[step] + gamma * tail
        found[step] = tail
    return found


def aftermath(event: Event, curve: Sequence[Evaluation], following: Event | None) -> dict[str, float | None]:
    """What became of the return after an intervention.

    Args:
        event: The intervention.
        curve: All evaluations, in order. One at the same step of the same task comes after an intervention.
        following: The next intervention, which closes the window if the task's end does not.

    Returns:
        ``drop``; ``lowest`` return in the window, the one right after included; ``recovery``: steps until an evaluation
        reaches the return before it again, None where none does.
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
    """The figures of a whole run that the leaderboard compares.

    Args:
        curve: All evaluations, in order.
        events: The interventions that were evaluated.
        bounds: Returns of a random and of a good policy, between which returns are normalised.
    """
    tasks = sorted({point.task for point in curve})
    ends = [_end(curve, task) for task in tasks]
    after = [aftermath(event, curve, following) for event, following in _windows(events)]
    final = ends[-1]
    low, high = bounds or (0.0, 1.0)
    share = None if bounds is None or final is None else (final - low) / (high - low)
    return {
        "final_return": final,
        "average_return": mean([point.value for point in curve]),
        "average_task_return": mean(ends),
        "normalised_return": share,
        "mean_drop": mean([found["drop"] for found in after]),
        "mean_lowest": mean([found["lowest"] for found in after]),
        "mean_recovery_steps": mean([found["recovery"] for found in after]),
        "unrecovered_fraction": mean([float(found["recovery"] is None) for found in after]),
        "final_q_bias": mean([point.bias for point in curve][-FINAL:]),
    }


def result(
    curve: Sequence[Evaluation], events: Sequence[Event], bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """The summary and what it rests on."""
    return {
        "summary": summary(curve, events, bounds),
        "returns": [vars(point) for point in curve],
        "events": [{**vars(event), **aftermath(event, curve, following)} for event, following in _windows(events)],
    }


def _windows(events: Sequence[Event]) -> list[tuple[Event, Event | None]]:
    """Each event with the one that follows it."""
    return list(zip(events, [*events[1:], None], strict=True)) if events else []


def _end(curve: Sequence[Evaluation], task: int) -> float | None:
    values = [point.value for point in curve if point.task == task]
    return mean(values[1:][-FINAL:] or values)  # the first is from before the task was learned
