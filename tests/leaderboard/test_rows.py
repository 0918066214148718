from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from plastibench.leaderboard import text as text_format
from plastibench.leaderboard.overall import overall
from plastibench.leaderboard.rows import rows
from plastibench.leaderboard.settings import by_setting
from plastibench.leaderboard.standings import standings
from plastibench.results.confidence import paired_gain, stratified_gain, stratified_ranks
from plastibench.results.tags import write_tags
from tests.leaderboard.made import acting, result, written

NONE = [0.50, 0.52, 0.47, 0.51, 0.49]
RESET = [0.61, 0.60, 0.57, 0.64, 0.58]


def of(name: str, finals: list[float], **more):
    return [result(name, seed, final, **more) for seed, final in enumerate(finals)]


def everything(found):
    return overall(by_setting(found), all_settings=True)


def test_values_of_a_row_are_computed_over_seeds() -> None:
    (setting,) = by_setting(of("none", NONE) + of("reset", RESET, drop=0.25))
    reset, none = rows(setting)
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


COSTS = {"seconds": 40.0, "metric_seconds": 4.0, "cpu_seconds": 20.0}


def test_time_and_memory_are_relative_to_none() -> None:
    slower = {"seconds": 100.0, "metric_seconds": 5.0, "cpu_seconds": 60.0, "intervention_seconds": 10.0}
    runs = of("none", NONE, cost=COSTS) + of("reset", RESET, cost={**slower, "intervention_bytes": 1500})
    found = {row["intervention"]: row for row in rows(*by_setting(runs))}
    assert found["reset"]["time"] == pytest.approx((60 * 0.95) / (20 * 0.9))  # without the fraction of the metrics
    assert found["none"]["time"] == 1.0
    assert found["reset"]["memory"] == pytest.approx(2.5)
    assert found["reset"]["cost"] == pytest.approx(0.1)


@pytest.mark.parametrize("reason", ["not measured", "short", "processor", "threads", "gpu"])
def test_times_that_cannot_be_compared_are_left_out(reason: str) -> None:
    runs = of("none", NONE, cost=COSTS) + of("reset", RESET, cost=COSTS)
    assert all(row["time"] for row in rows(*by_setting(runs)))
    odd = runs[-1]
    if reason == "not measured":
        odd.cost.cpu_seconds = None
    elif reason == "short":
        odd.cost.cpu_seconds = 9.0
    elif reason == "threads":
        odd.origin.threads = 8
    elif reason == "processor":
        odd.origin.hardware.processor = "another"
    else:
        for run in runs:
            run.origin.hardware.device = "cuda"
    (setting,) = by_setting(runs)
    made = rows(setting)
    assert all(row["time"] is None and row["memory"] == 1.0 for row in made)
    text = text_format.table(standings(runs))
    headings = text.splitlines()[2]
    assert "time ×" not in headings and "memory ×" in headings and text.count("time ×") == 1  # one line of legend


def test_single_seeds_and_other_budgets_have_no_rank() -> None:
    found = [*of("none", NONE), *of("redo", NONE), *of("reset", RESET), *of("fire", [0.9])]
    found += of("dash", RESET, cost={"updates": 99})
    (setting,) = by_setting(found)
    ranks = {row["intervention"]: (row["rank"], row["tied"]) for row in rows(setting)}
    assert ranks == {
        "fire": (None, False),
        "dash": (None, False),
        "reset": (1, False),
        "none": (2, True),
        "redo": (2, True),
    }


def test_overall_combines_settings_and_seeds() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", NONE)]
    found += [acting("none", seed, 100.0 + seed) for seed in range(5)]
    found += [acting("reset", seed, 200.0 + seed) for seed in range(5)]
    (best, base, lacking), told = overall(by_setting(found), all_settings=True)
    scores = RESET + [run.summary.normalized_return for run in found if run.agent == "dqn-mlp"][5:]
    assert best["intervention"] == "reset" and best["runs"] == 10 and (best["settings"], best["of"]) == (2, 2)
    assert best["iqm"].value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert (best["rank"], base["rank"], lacking["rank"]) == (1, 2, None)
    assert best["mean_rank"] == 1.0 and base["mean_rank"] == 2.0
    assert lacking["intervention"] == "redo"
    assert told == ["not ranked, not run in rl-cartpole, dqn-mlp: redo"]


def test_notes_on_missing_ranks_are_short() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", NONE)]
    for agent in ("dqn-mlp", "dqn-cnn"):
        found += [acting(name, seed, 100.0 + seed, agent=agent) for name in ("none", "reset") for seed in range(5)]
    _, told = overall(by_setting(found), all_settings=True)
    assert told == ["not ranked, not run in 2 of 3 settings: redo"]


def test_mean_rank_ignores_settings_with_a_single_seed() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", [0.2])]
    found += [acting("none", seed, 100.0 + seed) for seed in range(5)]
    found += [acting("reset", seed, 200.0 + seed) for seed in range(5)]
    found += [acting("redo", 0, 50.0), acting("fire", 0, 400.0), *of("fire", RESET)]
    rows_, told = overall(by_setting(found), all_settings=True)
    ranks = {row["intervention"]: row["mean_rank"] for row in rows_}
    assert ranks == {"reset": 1.0, "none": pytest.approx(2.5), "redo": None, "fire": 1.0}
    assert {row["intervention"]: row["rank"] for row in rows_} == {"reset": 1, "none": 2, "redo": None, "fire": None}
    assert len(told) == 2 and "not ranked, one seed in rl-cartpole, dqn-mlp: fire" in told


def test_a_single_setting_has_no_overall_table() -> None:
    assert overall(by_setting(of("none", NONE) + of("reset", RESET) + [acting()])) == ([], [])


def test_interval_of_a_stratified_gain_contains_seed_variance_only() -> None:
    draws = np.random.default_rng(1)
    gains = draws.normal([[0.0], [5.0], [9.0]], 0.1, (3, 4))  # very different, but each with low variance
    strata = [dict(enumerate(each)) for each in gains]
    none = [dict.fromkeys(range(4), 0.0)] * 3
    found = stratified_gain(strata, none)
    error = np.sqrt((gains.var(1, ddof=1) / 4).sum()) / 3
    v = gains.var(1, ddof=1) / 4
    half = stats.t.ppf(0.975, v.sum() ** 2 / (v**2 / 3).sum()) * error
    assert found == pytest.approx((gains.mean(), gains.mean() - half, gains.mean() + half))
    assert half < 0.1 and stratified_ranks([none, strata]) == [2, 1]
    assert stratified_ranks([none, [{0: 0.0}, *strata[1:]]]) == [1, 1]  # one seed in one setting
    assert stratified_gain(strata, [{0: 0.0}, *none[1:]]).low is None
    assert stratified_gain(strata, [{}, {}, {}]) is None
    one = [strata[0]]
    assert stratified_gain(one, none[:1]) == pytest.approx(paired_gain(one[0], none[0]))


def test_settings_that_differ_in_evaluation_only_count_once() -> None:
    often = [*of("none", NONE), *of("reset", RESET), *of("redo", NONE)]
    seldom = of("none", NONE) + of("reset", RESET)
    for run in seldom:
        run.options.env["evaluate_every"] = 99
    other = [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(5)]
    rows_, (told, _) = everything([*often, *seldom, *other])
    assert {row["of"] for row in rows_} == {2}
    assert "evaluate_every=99" in told and told.endswith("only in how often it is evaluated")
    assert overall(by_setting([*often, *seldom])) == ([], [])
    for run in seldom:
        run.data_digest = None  # as in schema 1
    counted, (told, _) = everything([*often, *seldom, *other])
    assert {row["of"] for row in counted} == {2}
    assert told.endswith("only in how often it is evaluated and whether its data is recorded")
    for run in seldom:
        run.data_digest = "0123456789ab"
    assert {row["of"] for row in everything([*often, *seldom, *other])[0]} == {3}


def test_notes_give_the_reason_for_a_missing_rank() -> None:
    found = [*of("none", NONE), *of("reset", RESET), *of("redo", RESET, cost={"updates": 99})]
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset", "redo") for seed in range(5)]
    rows_, told = overall(by_setting(found))
    assert [row["settings"] for row in rows_] == [2, 2, 1]
    assert len(told) == 1 and "not run" not in told[0] and told[0].startswith("not ranked, not comparable in ")


def test_overall_uses_one_none_per_setting() -> None:
    found = [*of("none", NONE), *of("reset", RESET)]
    more = of("none", NONE[:3])
    for run in more:
        run.group = "none_other_way"
        run.run["representative"] = 512
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(5)]
    (setting, *_) = by_setting(found + more)
    assert sum(method.name.startswith("none") for method in setting.methods) == 2
    rows_, _ = everything(found + more)
    reset = next(row for row in rows_ if row["intervention"] == "reset")
    expected, _ = everything(found)
    assert reset["gain"] == next(row for row in expected if row["intervention"] == "reset")["gain"]
    assert reset["rank"] is not None


def study(names: list[str], seeds: int = 2, **more):
    return [run for n, name in enumerate(names) for run in of(name, [0.3 + 0.1 * n] * seeds, **more)]


SIX = ["none", "reset", "rnr", "redo", "fire", "l2"]


@pytest.mark.parametrize(
    ("trial", "counts"),
    [
        (study(SIX[:2]), False),
        (study(SIX[:3]), True),
        (study(SIX, seeds=1), False),  # a quick look at all methods
    ],
)
def test_a_setting_with_few_methods_does_not_count_unless_asked(trial, counts: bool) -> None:
    big = [run for epochs in (3, 4) for run in study(SIX[:5], env_options={"epochs": epochs})]
    rows_, told = overall(by_setting([*big, *trial]))
    ranked = {row["intervention"] for row in rows_ if row["rank"] is not None}
    assert {row["of"] for row in rows_} == {3 if counts else 2}
    assert ranked == set(SIX[:3] if counts else SIX[:5])
    assert any("not counted, fewer than" in note and "epochs=2" in note for note in told) != counts
    rows_, told = everything([*big, *trial])
    assert {row["of"] for row in rows_} == {3} and "not counted" not in " ".join(told)


def test_boards_of_two_methods_or_single_seeds_have_an_overall_table() -> None:
    for methods, seeds in ((2, 2), (2, 1), (4, 1)):
        found = [run for epochs in (3, 4) for run in study(SIX[:methods], seeds, env_options={"epochs": epochs})]
        rows_, told = overall(by_setting(found))
        assert {row["of"] for row in rows_} == {2} and "not counted" not in " ".join(told)


def test_runs_with_an_excluded_tag_do_not_count_over_all_settings(tmp_path: Path) -> None:
    found = [run for epochs in (2, 3) for run in study(SIX[:3], seeds=3, env_options={"epochs": epochs})]
    trial = study(SIX[:3], seeds=3, env_options={"epochs": 4})
    written(tmp_path, [*found, *trial])
    for run in trial:
        write_tags(run.folder, ["trial", "x"])
    write_tags(found[0].folder, ["y"])
    shown = standings([*found, *trial])
    assert len(shown.tables) == 3 and {row["of"] for row in shown.overall} == {2}
    assert "not counted: 9 runs with the tag trial" in shown.overall_notes
    assert {row["of"] for row in standings([*found, *trial], exclude_tags=()).overall} == {3}
    (none,) = (
        row for row in standings([*found, *trial], exclude_tags=("x", "y")).overall if row["intervention"] == "none"
    )
    assert none["runs"] == 5
