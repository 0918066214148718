from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plastibench.plotting.caption import caption
from plastibench.plotting.series import align, drop_series, mean_and_interval, score_series
from plastibench.results.result import Origin
from tests.plotting.made import ORIGIN, results_of, rl_result, supervised_result


def test_the_interval_uses_student_s_t() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    mean, half = mean_and_interval(values)
    for column in range(3):
        low, high = stats.t.interval(0.95, 4, loc=values[:, column].mean(), scale=stats.sem(values[:, column]))
        assert (mean[column] - half[column], mean[column] + half[column]) == pytest.approx((low, high))


def test_two_seeds_have_no_interval() -> None:
    mean, half = mean_and_interval(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert mean.tolist() == [2.0, 2.0] and np.isnan(half).all()


def test_series_are_aligned_at_common_positions() -> None:
    positions, values = align([[(1, 10.0), (2, 20.0), (3, 30.0)], [(3, 31.0), (1, 11.0)]])
    assert positions.tolist() == [1, 3] and values.tolist() == [[10, 30], [11, 31]]


def test_scores_and_drops_of_supervised_and_rl_runs() -> None:
    run = supervised_result("reset", 1)
    assert score_series(run) == [(n + 1, 100 * task.end) for n, task in enumerate(run.tasks)]
    assert drop_series(run) == [(n + 2, pytest.approx(10 * run.tasks[n].end)) for n in range(3)]
    assert [steps for steps, _ in score_series(rl_result())] == [0, 1000, 2000, 3000, 4000]
    assert [steps for steps, _ in score_series(rl_result(tasks=2))] == [2000, 4000]  # the ends of the two tasks
    assert drop_series(rl_result("rnr", 2)) == [(1000, 2.1), (2000, 2.2)]


def test_the_caption_states_seeds_intervals_and_origin() -> None:
    found = [*results_of("none", seeds=5), *results_of("reset", seeds=3)]
    gpu = {"processor": "Some CPU", "cores": 8, "device": "Some GPU"}
    origin = {**ORIGIN, "commit": "fedcba987654+changes", "hardware": gpu, "precision": "bfloat16"}
    found[0].origin = Origin.model_validate(origin)
    assert caption(found, "What it is.", intervals="bars") == (
        "What it is. Mean over 3–5 seeds; bars: 95 % confidence interval over seeds (Student's\u00a0t). "
        "Commit fedcba9+changes / 0123456; Some GPU (host: Some CPU) / Some CPU (CPU); bfloat16 / float32."
    )
    assert "Mean over 5 seeds" in caption(results_of("none", seeds=5))
    assert "One seed." in caption(results_of("none", "reset", seeds=1))
    assert "Mean over 2 seeds; each seed is drawn and no interval" in caption(results_of("none", seeds=2))
    mixed = caption([*results_of("none", seeds=5), *results_of("reset", seeds=2)])
    assert "95 % confidence interval" in mixed and "With one or two seeds, each seed is drawn" in mixed
