from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from plastibench.metrics import PERFORMANCE, PLASTICITY
from plastibench.results.accuracy import TaskRecord, area_under_curve, divergence, drop, mean, recovery, summary


def record(curve: list[tuple[float, float]], task: int = 1, **values: float | None) -> TaskRecord:
    return TaskRecord(task, 100, 0.0, curve=curve, **values)


def test_drop_is_accuracy_before_minus_after() -> None:
    assert drop(record([], before=0.75, after=0.5)) == 0.25
    assert drop(record([], before=0.5, after=0.625)) == -0.125
    assert drop(record([], before=0.5, after=0.0)) == 0.5
    assert drop(record([(0, 0.1)])) is None


def test_recovery_is_the_first_epoch_as_good_as_before() -> None:
    curve = [(0, 0.3), (1, 0.4), (2, 0.6), (5, 0.5), (10, 0.7)]
    assert recovery(record(curve, before=0.6, after=0.3)) == 2
    assert recovery(record(curve, before=0.61, after=0.3)) == 10
    assert recovery(record(curve, before=0.3, after=0.3)) == 0
    assert recovery(record(curve, before=0.0, after=0.0)) == 0


def test_recovery_is_none_without_recovery_and_in_the_first_task() -> None:
    curve = [(0, 0.3), (10, 0.7)]
    assert recovery(record(curve, before=0.71, after=0.3)) is None
    assert recovery(record(curve, task=0)) is None


def test_area_under_the_curve_is_weighted_by_epochs() -> None:
    curve = [(0, 0.0), (1, 0.5), (2, 0.5), (10, 1.0)]
    # trapezoids: 0.25 + 0.5 + 8 * 0.75 = 6.75 over 10 epochs
    assert area_under_curve(curve) == pytest.approx(0.675, abs=1e-15)
    assert area_under_curve([(0, 0.4), (7, 0.4)]) == pytest.approx(0.4)
    assert area_under_curve([(3, 0.4)]) == 0.4


def test_end_is_the_last_evaluation() -> None:
    assert record([(0, 0.9), (3, 0.2)]).end == 0.2


def test_mean_ignores_none() -> None:
    assert mean([0.25, None, 0.75]) == 0.5
    assert mean([None, None]) is None
    assert mean([]) is None
    assert mean([0.0, None]) == 0.0


def test_summary_of_five_tasks_equals_hand_computed_values() -> None:
    records = [
        TaskRecord(0, 10, 0.5, curve=[(0, 0.1), (4, 0.5)], train_accuracy=0.4),
        TaskRecord(1, 20, 0.4, 0.5, 0.4, 0.9, 0.1, [(0, 0.4), (1, 0.5), (4, 0.6)], 0.5),
        TaskRecord(2, 30, 0.3, 0.6, 0.2, 0.3, 0.9, [(0, 0.2), (2, 0.3), (4, 0.4)], 0.6),
        TaskRecord(3, 40, 0.2, 0.4, 0.4, 1.0, 0.0, [(0, 0.4), (4, 0.8)], 0.7),
        TaskRecord(4, 50, 0.0, 0.8, 0.5, 0.6, 0.2, [(0, 0.5), (3, 0.8), (4, 0.9)], 0.95),
    ]
    found = summary(records)
    expected = {
        "final_accuracy": 0.9,
        "average_accuracy": (0.5 + 0.6 + 0.4 + 0.8 + 0.9) / 5,
        "first_three_accuracy": 0.5,
        "last_three_accuracy": 0.7,
        # 0.3; (0.45 + 3 * 0.55) / 4; (0.5 + 0.7) / 4; 0.6; (3 * 0.65 + 0.85) / 4
        "auc": (0.3 + 0.525 + 0.3 + 0.6 + 0.7) / 5,
        "mean_drop": (0.1 + 0.4 + 0.0 + 0.3) / 4,
        "mean_agreement": (0.9 + 0.3 + 1.0 + 0.6) / 4,
        "mean_output_kl": (0.1 + 0.9 + 0.0 + 0.2) / 4,
        "mean_recovery_epochs": (1 + 0 + 3) / 3,
        "unrecovered_fraction": 0.25,
        "final_train_accuracy": 0.95,
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_summary_of_a_single_task_has_no_boundary_values() -> None:
    found = summary([TaskRecord(0, 10, 0.5, curve=[(0, 0.1), (4, 0.5)])])
    assert found["final_accuracy"] == found["average_accuracy"] == found["last_three_accuracy"] == 0.5
    for name in ("mean_drop", "mean_agreement", "mean_output_kl", "mean_recovery_epochs", "unrecovered_fraction"):
        assert found[name] is None


def test_divergence_equals_scipy_relative_entropy() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 3, (50, 7)), rng.normal(0, 3, (50, 7))
    expected = float(rel_entr(softmax(before, axis=1), softmax(after, axis=1)).sum(1).mean())
    assert divergence(torch.tensor(before), torch.tensor(after)) == pytest.approx(expected, rel=1e-12)
    backwards = float(rel_entr(softmax(after, axis=1), softmax(before, axis=1)).sum(1).mean())
    assert abs(expected - backwards) > 0.02  # the direction matters
    single = divergence(torch.tensor(before, dtype=torch.float32), torch.tensor(after, dtype=torch.float32))
    assert single == pytest.approx(expected, rel=1e-5)


def test_divergence_equals_hand_computed_values() -> None:
    half, quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    assert divergence(half, quarter) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert divergence(quarter, quarter) == 0.0
    assert divergence(quarter, quarter + 5.0) == pytest.approx(0.0, abs=1e-7)  # softmax ignores a constant
    assert math.isfinite(divergence(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])))


def test_every_metric_has_a_definition() -> None:
    from plastibench.metrics.plasticity import rank_metrics

    assert {"drop", "recovery", "auc", "accuracy"} <= set(PERFORMANCE)
    assert set(rank_metrics(torch.eye(3))) <= set(PLASTICITY)
    assert not set(PERFORMANCE) & set(PLASTICITY)
