from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plastibench.leaderboard.overall import overall
from plastibench.leaderboard.rows import rows
from plastibench.leaderboard.settings import contests
from plastibench.results.confidence import paired_gain, stratified_gain, stratified_ranks
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
    costs = {"seconds": 21.0, "metric_seconds": 1.0, "intervention_seconds": 2.1, "intervention_bytes": 1500}
    slower = of("reset", RESET, cost=costs)
    elsewhere = of("redo", RESET, cost=costs)
    for run in elsewhere:
        run.origin.hardware.processor = "another"
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
    (best, base, lacking), told = overall(contests(found))
    scores = RESET + [run.summary.normalised_return for run in found if run.agent == "dqn-mlp"][5:]
    assert best["intervention"] == "reset" and best["runs"] == 10 and (best["contests"], best["of"]) == (2, 2)
    assert best["iqm"].value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert (best["rank"], base["rank"], lacking["rank"]) == (1, 2, None)
    assert best["mean_rank"] == 1.0 and base["mean_rank"] == 2.0
    assert lacking["intervention"] == "redo"
    assert told == ["not ranked, not run in rl-cartpole, dqn-mlp: redo"]


def test_a_single_seed_has_no_rank_that_a_mean_of_ranks_would_count() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", [0.2])]
    found += [acting("none", seed, 100.0 + seed) for seed in range(5)]
    found += [acting("reset", seed, 200.0 + seed) for seed in range(5)]
    found += [acting("redo", 0, 50.0), acting("fire", 0, 400.0), *of("fire", RESET)]
    rows_, told = overall(contests(found))
    ranks = {row["intervention"]: row["mean_rank"] for row in rows_}
    assert ranks == {"reset": 1.0, "none": pytest.approx(2.5), "redo": None, "fire": 1.0}
    assert {row["intervention"]: row["rank"] for row in rows_} == {"reset": 1, "none": 2, "redo": None, "fire": None}
    assert len(told) == 2 and "not ranked, one seed in rl-cartpole, dqn-mlp: fire" in told


def test_a_single_contest_has_no_table_over_all() -> None:
    assert overall(contests(of("none", NONE) + of("reset", RESET) + [acting()])) == ([], [])


def test_the_error_of_a_gain_over_scenarios_is_that_of_seeds_alone() -> None:
    draws = np.random.default_rng(1)
    gains = draws.normal([[0.0], [5.0], [9.0]], 0.1, (3, 4))  # far apart, but each certain
    strata = [dict(enumerate(each)) for each in gains]
    none = [dict.fromkeys(range(4), 0.0)] * 3
    found = stratified_gain(strata, none)
    error = np.sqrt((gains.var(1, ddof=1) / 4).sum()) / 3
    v = gains.var(1, ddof=1) / 4
    half = stats.t.ppf(0.975, v.sum() ** 2 / (v**2 / 3).sum()) * error
    assert found == pytest.approx((gains.mean(), gains.mean() - half, gains.mean() + half))
    assert half < 0.1 and stratified_ranks([none, strata]) == [2, 1]
    assert stratified_ranks([none, [{0: 0.0}, *strata[1:]]]) == [1, 1]  # in one of them nothing is known
    assert stratified_gain(strata, [{0: 0.0}, *none[1:]]).low is None
    assert stratified_gain(strata, [{}, {}, {}]) is None
    one = [strata[0]]
    assert stratified_gain(one, none[:1]) == pytest.approx(paired_gain(one[0], none[0]))


def test_the_same_runs_evaluated_more_often_count_once() -> None:
    often = [*of("none", NONE), *of("reset", RESET), *of("redo", NONE)]
    seldom = of("none", NONE) + of("reset", RESET)
    for run in seldom:
        run.options.env["evaluate_every"] = 99
    other = [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(5)]
    rows_, (told, _) = overall(contests([*often, *seldom, *other]))
    assert {row["of"] for row in rows_} == {2}
    assert "evaluate_every=99" in told and "is not counted: it differs from" in told
    assert overall(contests([*often, *seldom])) == ([], [])
    for run in seldom:
        run.data_digest = None  # as in schema 1
    assert {row["of"] for row in overall(contests([*often, *seldom, *other]))[0]} == {2}
    for run in seldom:
        run.data_digest = "0123456789ab"
    assert {row["of"] for row in overall(contests([*often, *seldom, *other]))[0]} == {3}


def test_why_an_entry_is_not_ranked_over_all_is_told_as_it_is() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", RESET, cost={"updates": 99})]
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset", "redo") for seed in range(5)]
    rows_, told = overall(contests(found))
    assert [row["contests"] for row in rows_] == [2, 2, 1]
    assert len(told) == 1 and "not run" not in told[0] and told[0].startswith("not ranked, not comparable in ")


def test_none_is_the_same_over_all_where_it_was_run_in_two_ways() -> None:
    found = [*of("none", NONE), *of("reset", RESET)]
    more = of("none", NONE[:3])
    for run in more:
        run.group = "none_other_way"
        run.run["representative"] = 512
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(5)]
    (contest, *_) = contests(found + more)
    assert sum(entry.name.startswith("none") for entry in contest.entries) == 2
    rows_, _ = overall(contests(found + more))
    reset = next(row for row in rows_ if row["intervention"] == "reset")
    expected, _ = overall(contests(found))
    assert reset["gain"] == next(row for row in expected if row["intervention"] == "reset")["gain"]
    assert reset["rank"] is not None
