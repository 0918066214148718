from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plastibench.plotting.caption import caption
from plastibench.plotting.over_seeds import drops, interval, scores, together
from plastibench.results.result import Origin
from tests.plotting.made import ORIGIN, acted, classified, several


def test_the_interval_is_that_of_student_s_t() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    mean, half = interval(values)
    for column in range(3):
        low, high = stats.t.interval(0.95, 4, loc=values[:, column].mean(), scale=stats.sem(values[:, column]))
        assert (mean[column] - half[column], mean[column] + half[column]) == pytest.approx((low, high))


def test_two_seeds_have_no_interval() -> None:
    mean, half = interval(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert mean.tolist() == [2.0, 2.0] and np.isnan(half).all()


def test_series_meet_at_the_places_that_all_have() -> None:
    places, values = together([[(1, 10.0), (2, 20.0), (3, 30.0)], [(3, 31.0), (1, 11.0)]])
    assert places.tolist() == [1, 3] and values.tolist() == [[10, 30], [11, 31]]


def test_scores_and_drops_of_a_classifier_and_of_an_agent_that_acts() -> None:
    run = classified("reset", 1)
    assert scores(run) == [(n + 1, 100 * task.end) for n, task in enumerate(run.tasks)]
    assert drops(run) == [(n + 2, pytest.approx(10 * run.tasks[n].end)) for n in range(3)]
    assert [steps for steps, _ in scores(acted())] == [0, 1000, 2000, 3000, 4000]
    assert [steps for steps, _ in scores(acted(tasks=2))] == [2000, 4000]  # where each of the two tasks ends
    assert drops(acted("rnr", 2)) == [(1000, 2.1), (2000, 2.2)]


def test_the_caption_says_seeds_intervals_and_origin() -> None:
    found = [*several("none", seeds=5), *several("reset", seeds=3)]
    gpu = {"processor": "Some CPU", "cores": 8, "device": "Some GPU"}
    origin = {**ORIGIN, "commit": "fedcba987654+changes", "hardware": gpu, "precision": "bfloat16"}
    found[0].origin = Origin.model_validate(origin)
    assert caption(found, "What it is.", intervals="bars") == (
        "What it is. Means over 3–5 seeds; bars: 95 % confidence intervals (t over seeds). Commit fedcba9+changes / "
        "0123456; Some GPU (Some CPU) / Some CPU, on the CPU; bfloat16 / float32."
    )
    assert "Means over 5 seeds" in caption(several("none", seeds=5))
    assert "One seed." in caption(several("none", "reset", seeds=1))
    assert "confidence" not in caption(several("none", seeds=2)) and "Of two seeds" in caption(several("none", seeds=2))
