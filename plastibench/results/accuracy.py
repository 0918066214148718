"""Performance on a task stream, from the evaluations of a run (pure functions)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TaskRecord:
    """The evaluations of one task. Accuracies are shares between 0 and 1.

    Attributes:
        task: Number of the task, from 0.
        samples: Size of the data during it.
        noise: Share of wrong labels.
        before: Accuracy at the end of the task before, or None for the first task.
        after: Accuracy right after the intervention at this task's start, same images and labels as ``before``.
        agreement: Share of predictions that the intervention left as they were.
        output_kl: KL divergence from the outputs before it to those after it, in nats.
        curve: (epoch, accuracy) pairs; epoch 0 is the start of the task, on the task's own labels.
        train_accuracy: Accuracy on the task's own training labels at its end.
    """

    task: int
    samples: int
    noise: float
    before: float | None = None
    after: float | None = None
    agreement: float | None = None
    output_kl: float | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)
    train_accuracy: float | None = None

    @classmethod
    def after_switch(cls, task: int, samples: int, noise: float, found: dict[str, float]) -> TaskRecord:
        """The record of a task that begins with an intervention; ``found`` is what :func:`comparison` returned."""
        return cls(task, samples, noise, found["before"], found["after"], found["agreement"], found["output_kl"])

    @property
    def end(self) -> float:
        """Accuracy at the end of the task."""
        return self.curve[-1][1]


def drop(record: TaskRecord) -> float | None:
    """How much accuracy the intervention cost at once: before minus after."""
    if record.before is None or record.after is None:
        return None
    return record.before - record.after


def recovery(record: TaskRecord) -> float | None:
    """Epochs until the accuracy before the switch is reached again, or None where it never is in this task."""
    if record.before is None:
        return None
    return next((epoch for epoch, accuracy in record.curve if accuracy >= record.before), None)


def area_under_curve(curve: Sequence[tuple[float, float]]) -> float:
    """Mean of the accuracy over the epochs of a task, by the trapezoid rule."""
    if len(curve) < 2:
        return curve[0][1] if curve else 0.0
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(curve))
    return area / (curve[-1][0] - curve[0][0])


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there, or None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def task_figures(record: TaskRecord) -> dict[str, Any]:
    """All figures of one task, for the result."""
    derived = {"end": record.end, "drop": drop(record), "recovery": recovery(record)}
    return {**dataclasses.asdict(record), **derived, "auc": area_under_curve(record.curve)}


def summary(records: Sequence[TaskRecord]) -> dict[str, float | None]:
    """The figures of a whole run that the leaderboard compares."""
    switches = records[1:]
    recovered = [recovery(record) for record in switches]
    first, last = records[:3], records[-3:]
    return {
        "final_accuracy": records[-1].end,
        "average_accuracy": mean([record.end for record in records]),
        "first_three_accuracy": mean([record.end for record in first]),
        "last_three_accuracy": mean([record.end for record in last]),
        "auc": mean([area_under_curve(record.curve) for record in records]),
        "mean_drop": mean([drop(record) for record in switches]),
        "mean_agreement": mean([record.agreement for record in switches]),
        "mean_output_kl": mean([record.output_kl for record in switches]),
        "mean_recovery_epochs": mean(recovered),
        "unrecovered_fraction": mean([float(value is None) for value in recovered]),
        "final_train_accuracy": records[-1].train_accuracy,
    }


def comparison(before: Tensor, after: Tensor, answers: Tensor) -> dict[str, float]:
    """What an intervention did to the outputs.

    Args:
        before: Logits before it. [N, K]
        after: Logits right after it. [N, K]
        answers: Right classes. [N]
    """
    old, new = before.argmax(1), after.argmax(1)
    return {
        "before": share(old == answers),
        "after": share(new == answers),
        "agreement": share(old == new),
        "output_kl": divergence(before, after),
    }


def share(right: Tensor) -> float:
    """Share of True in a boolean tensor."""
    return float(right.double().mean())


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(p_before || p_after) of two sets of logits [N, K], in nats."""
    old, new = before.double().log_softmax(1), after.double().log_softmax(1)
    return float((old.exp() * (old - new)).sum(1).mean())
