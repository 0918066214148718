from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plastibench.leaderboard.contest import contests
from plastibench.leaderboard.rows import overall, rows
from tests.leaderboard.made import acting, result

NONE = [0.50, 0.52, 0.47, 0.51, 0.49]
RESET = [0.61, 0.60, 0.57, 0.64, 0.58]


def of(name: str, finals: list[float], **more):
    return [result(name, seed, final, **more) for seed, final in enumerate(finals)]


def test_figures_of_a_row_are_those_of_its_seeds() -> None:
    (contest,) = contests(of("none", NONE) + of("reset", RESET, drop=0.25))
    reset, none = rows(contest)
    assert (reset["intervention"], none["intervention"]) == ("reset", "none")
    assert reset["seeds"] == [0, 1, 2, 3, 4]
    low, high = stats.t.interval(0.95, 4, np.mean(RESET), stats.sem(RESET))
    assert reset["final"] == pytest.approx((np.mean(RESET), low, high))
    assert reset["iqm"].value == pytest.approx(stats.trim_mean(RESET, 0.25))
    gains = np.subtract(RESET, NONE)
    assert reset["gain"] == pytest.approx((gains.mean(), *stats.t.interval(0.95, 4, gains.mean(), stats.sem(gains))))
    assert reset["better"].value == 1.0
    assert reset["average"] == pytest.approx(np.mean(RESET) - 0.1)
    assert reset["drop"].value == pytest.approx(0.25)
    assert (reset["rank"], reset["tied"], none["rank"], none["tied"]) == (1, False, 2, False)
    assert none["gain"] is None and none["better"] is None


def test_time_and_memory_are_those_of_none_on_the_same_machine() -> None:
    costs = {"seconds": 21.0, "metric-seconds": 1.0, "intervention-seconds": 2.1, "intervention-bytes": 1500}
    slower = of("reset", RESET, cost=costs)
    elsewhere = of("redo", RESET, cost=costs)
    for run in elsewhere:
        run["origin"] = {**run["origin"], "hardware": {"processor": "another", "device": "cpu"}}
    (contest,) = contests(of("none", NONE) + slower + elsewhere)
    found = {row["intervention"]: row for row in rows(contest)}
    assert found["reset"]["time"] == pytest.approx(20 / 9)  # without the seconds of the metrics
    assert found["redo"]["time"] is None
    assert found["reset"]["memory"] == found["redo"]["memory"] == pytest.approx(2.5)
    assert found["reset"]["cost"] == pytest.approx(0.1)


def test_ties_are_told_and_what_proves_nothing_has_no_rank() -> None:
    found = [*of("none", NONE), *of("redo", NONE), *of("reset", RESET), *of("fire", [0.9])]
    found += of("dash", RESET, cost={"updates": 99})
    (contest,) = contests(found)
    places = {row["intervention"]: (row["rank"], row["tied"]) for row in rows(contest)}
    assert places == {
        "fire": (None, False),
        "dash": (None, False),
        "reset": (1, False),
        "none": (2, True),
        "redo": (2, True),
    }


def test_over_all_scenarios_strata_and_seeds_count_together() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", NONE)]
    found += [acting("none", seed, 100.0 + seed) for seed in range(5)]
    found += [acting("reset", seed, 200.0 + seed) for seed in range(5)]
    best, base, lacking = overall(contests(found))
    scores = RESET + [run["summary"]["normalised-return"] for run in found if run["agent"] == "dqn-mlp"][5:]
    assert best["intervention"] == "reset" and best["runs"] == 10 and (best["contests"], best["of"]) == (2, 2)
    assert best["iqm"].value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert (best["rank"], base["rank"], lacking["rank"]) == (1, 2, None)
    assert best["mean_rank"] == 1.0 and base["mean_rank"] == 2.0
    assert lacking["intervention"] == "redo" and lacking["lacking"] == ["rl-cartpole, dqn-mlp"]


def test_a_single_seed_has_no_rank_that_a_mean_of_ranks_would_count() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", [0.1])]
    found += [acting("none", seed, 100.0 + seed) for seed in range(5)]
    found += [acting("reset", seed, 200.0 + seed) for seed in range(5)]
    found += [acting("redo", 0, 50.0), acting("fire", 0, 400.0), *of("fire", RESET)]
    ranks = {row["intervention"]: row["mean_rank"] for row in overall(contests(found))}
    assert ranks == {"reset": 1.0, "none": pytest.approx(2.5), "redo": None, "fire": 1.0}


def test_a_single_contest_has_no_table_over_all() -> None:
    assert overall(contests(of("none", NONE) + of("reset", RESET) + [acting()])) == []
