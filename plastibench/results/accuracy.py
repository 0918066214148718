"""Accuracy metrics of a supervised run, computed from its evaluations (pure functions)."""

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
    """The evaluations of one task. Accuracies are fractions between 0 and 1.

    Attributes:
        task: Number of the task, from 0.
        samples: Number of training samples.
        noise: Fraction of wrong labels.
        before: Accuracy at the end of the previous task; None for the first task.
        after: Accuracy right after the intervention at the task boundary, on the same images and labels as ``before``.
        agreement: Fraction of predictions that the intervention did not change.
        output_kl: KL divergence from the outputs before the intervention to those after it, in nats.
        curve: (epoch, accuracy) pairs with the labels of this task; epoch 0 is the start of the task.
        train_accuracy: Accuracy on the training labels at the end of this task.
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
    def after_boundary(cls, task: int, samples: int, noise: float, compared: dict[str, float]) -> TaskRecord:
        """Make the record of a task that follows a task boundary.

        Args:
            task: Number of the task, from 0.
            samples: Number of training samples.
            noise: Fraction of wrong labels.
            compared: What :func:`comparison` returned for the outputs before and after the boundary.
        """
        before, after = compared["before"], compared["after"]
        return cls(task, samples, noise, before, after, compared["agreement"], compared["output_kl"])

    @property
    def end(self) -> float:
        """Accuracy at the end of the task."""
        return self.curve[-1][1]


def drop(record: TaskRecord) -> float | None:
    """Accuracy lost right at the intervention: before minus after."""
    if record.before is None or record.after is None:
        return None
    return record.before - record.after


def recovery(record: TaskRecord) -> float | None:
    """Epochs until the accuracy before the task boundary is reached again; None if it never is in this task."""
    if record.before is None:
        return None
    return next((epoch for epoch, accuracy in record.curve if accuracy >= record.before), None)


def area_under_curve(curve: Sequence[tuple[float, float]]) -> float:
    """Area under the accuracy curve of a task by the trapezoid rule, divided by the number of epochs."""
    if len(curve) < 2:
        return curve[0][1] if curve else 0.0
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(curve))
    return area / (curve[-1][0] - curve[0][0])


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def task_values(record: TaskRecord) -> dict[str, Any]:
    """All values of one task as in ``result.json``; see :class:`plastibench.results.result.Task`."""
    derived = {"end": record.end, "drop": drop(record), "recovery": recovery(record)}
    return {**dataclasses.asdict(record), **derived, "auc": area_under_curve(record.curve)}


def summary(records: Sequence[TaskRecord]) -> dict[str, float | None]:
    """Summarize a run; see :class:`plastibench.results.result.Summary`."""
    after_boundaries = records[1:]
    recovered = [recovery(record) for record in after_boundaries]
    first, last = records[:3], records[-3:]
    return {
        "final_accuracy": records[-1].end,
        "average_accuracy": mean([record.end for record in records]),
        "first_three_accuracy": mean([record.end for record in first]),
        "last_three_accuracy": mean([record.end for record in last]),
        "auc": mean([area_under_curve(record.curve) for record in records]),
        "mean_drop": mean([drop(record) for record in after_boundaries]),
        "mean_agreement": mean([record.agreement for record in after_boundaries]),
        "mean_output_kl": mean([record.output_kl for record in after_boundaries]),
        "mean_recovery_epochs": mean(recovered),
        "unrecovered_fraction": mean([float(value is None) for value in recovered]),
        "final_train_accuracy": records[-1].train_accuracy,
    }


def comparison(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare the outputs before and after an intervention.

    Args:
        before: Logits before the intervention. [N, K]
        after: Logits right after it. [N, K]
        labels: Correct classes. [N]

    Returns:
        ``before``, ``after``, ``agreement`` and ``output_kl`` of :class:`TaskRecord`.
    """
    old, new = before.argmax(1), after.argmax(1)
    return {
        "before": fraction(old == labels),
        "after": fraction(new == labels),
        "agreement": fraction(old == new),
        "output_kl": divergence(before, after),
    }


def fraction(values: Tensor) -> float:
    """Fraction of True in a boolean tensor."""
    return float(values.double().mean())


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(p_before || p_after) in nats, from logits [N, K]."""
    old, new = before.double().log_softmax(1), after.double().log_softmax(1)
    return float((old.exp() * (old - new)).sum(1).mean())
