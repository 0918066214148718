"""Metrics of returns against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from plastibench.results.returns import Evaluation, Event, discounted, event_values, result, summary


def curve(*values: float, task: int = 0, start: int = 0) -> list[Evaluation]:
    return [Evaluation(task, start + 10 * number, value, 0.5 * number) for number, value in enumerate(values)]


@pytest.mark.parametrize("tail", [0.0, 4.0])
def test_discounted_returns_include_the_tail(tail: float) -> None:
    rewards = [1.0, -2.0, 0.0, 3.0]
    expected = [
        sum(0.9**i * reward for i, reward in enumerate(rewards[step:])) + 0.9 ** (4 - step) * tail for step in range(4)
    ]
    np.testing.assert_allclose(discounted(rewards, 0.9, tail), expected)


def test_event_values_are_measured_until_the_next_event() -> None:
    event = Event(task=0, steps=21, update=5, before=8.0, after=3.0)
    points = curve(1, 5, 8, 2, 6, 9, 0)

    def until(steps: int, task: int = 0) -> dict[str, float | None]:
        return event_values(event, points, Event(task, steps, 9, before=0.0, after=0.0))

    assert until(51) == until(60) == {"drop": 5.0, "lowest": 2.0, "recovery": 29}
    assert until(50) == {"drop": 5.0, "lowest": 2.0, "recovery": None}  # the evaluation at 50 belongs to the next event
    assert event_values(event, points, None) == {"drop": 5.0, "lowest": 0.0, "recovery": 29}
    assert until(60, task=1) == event_values(event, points, None)  # in another task, the window ends with the task


def test_an_evaluation_at_the_step_of_an_event_follows_it() -> None:
    events = [Event(0, 10, 5, before=10.0, after=8.0), Event(0, 20, 9, before=10.0, after=1.0)]
    found = result(curve(0, 10, 1, 10, 10), events)["events"]
    assert [event["lowest"] for event in found] == [8.0, 1.0] and [event["recovery"] for event in found] == [0, 10]


def test_recovery_is_0_without_a_drop() -> None:
    event = Event(0, 21, 5, before=8.0, after=8.5)
    assert event_values(event, curve(1, 5, 8, 9), None) == {"drop": -0.5, "lowest": 8.5, "recovery": 0}


def test_summary_ignores_the_evaluation_before_training() -> None:
    found = summary(curve(0, 6, 9, 12, 15), [], bounds=(2.0, 22.0))
    assert found["final_return"] == 12.0 and found["average_return"] == pytest.approx(8.4)
    assert found["normalized_return"] == pytest.approx(0.5) and found["final_q_bias"] == pytest.approx(1.5)
    assert found["mean_drop"] is None and found["mean_recovery_steps"] is None
    assert summary(curve(0, 6), [])["final_return"] == 6.0
    assert summary(curve(0, 6), [])["normalized_return"] is None


def test_each_task_and_event_has_its_own_values() -> None:
    points = [*curve(0, 4, 6), *curve(2, 3, 5, task=1, start=20), *curve(1, 9, 9, task=2, start=40)]
    events = [Event(1, 20, 1, 6.0, 2.0), Event(2, 40, 2, 5.0, 1.0)]
    found = result(points, events)
    assert found["summary"]["average_task_return"] == pytest.approx((5 + 4 + 9) / 3)
    assert found["summary"]["final_return"] == 9.0
    assert [event["recovery"] for event in found["events"]] == [None, 10]
    assert [event["lowest"] for event in found["events"]] == [2.0, 1.0]
    assert found["summary"]["mean_drop"] == 4.0 and found["summary"]["unrecovered_fraction"] == 0.5
