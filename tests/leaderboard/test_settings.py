from __future__ import annotations

from typing import Any

import pytest

from plastibench.leaderboard.settings import contests, label
from plastibench.results.result import Result
from tests.leaderboard.made import acting, result


def entries(found: list[Result]) -> list[list[tuple[str, list[int]]]]:
    return [[(entry.name, list(entry.runs)) for entry in contest.entries] for contest in contests(found)]


def test_runs_that_differ_in_their_seed_alone_are_one_entry() -> None:
    found = [result(name, seed) for seed in (1, 0) for name in ("none", "reset")]
    assert entries(found) == [[("none", [0, 1]), ("reset", [0, 1])]]
    (contest,) = contests(found)
    assert contest.title == "cl-digits epochs=2 noise=0.5,0.1,0.0, mlp" and contest.differs == ""
    assert contest.base is not None and contest.base.name == "none"


@pytest.mark.parametrize(
    ("other", "named", "reason"),
    [
        ({"env_options": {"epochs": 5}}, "epochs=5", "env.epochs"),
        ({"env_options": {"evaluate_every": 3}}, "evaluate_every=3", "env.evaluate_every"),
        ({"agent_options": {"lr": 0.5}}, "lr=0.5", "agent.lr"),
        ({"data": "ffffffffffff"}, "data=ffffffffffff", "data"),
        ({"version": 2}, "version=2", "version"),
    ],
)
def test_other_budgets_and_data_stand_apart_and_say_why(other: dict[str, Any], named: str, reason: str) -> None:
    found = [result("none"), result("reset"), result("reset", **other)]
    usual, apart = contests(found)
    assert [entry.name for entry in usual.entries] == ["none", "reset"]
    assert [entry.name for entry in apart.entries] == ["reset"]
    assert named in apart.title and usual.title != apart.title
    for contest in (usual, apart):
        assert contest.differs == f"not comparable with other runs of cl-digits and mlp, which differ in {reason}"


def test_data_that_is_not_stated_joins_the_only_one_that_is() -> None:
    old = result("reset", data=None)
    assert len(contests([result("none"), old])) == 1
    assert len(contests([result("none"), result("none", data="ffffffffffff"), old])) == 3


def test_more_updates_than_none_had_are_no_fair_contest() -> None:
    found = [result("none"), result("reset"), result("redo", cost={"updates": 90})]
    (contest,) = contests(found)
    assert [entry.apart for entry in contest.entries] == ["", "", "90 updates, the others 60"]


def test_options_schedule_and_at_last_run_options_tell_entries_apart() -> None:
    found = [
        result("rnr"),
        result("rnr", intervention_options={"quantile": 0.2}),
        result("rnr", every=7),
        result("rnr", representative=64),
    ]
    (contest,) = contests(found)
    names = [entry.name for entry in contest.entries]
    assert names[1:3] == ["rnr quantile=0.2", "rnr every=7"]
    assert names[0].startswith("rnr representative=2048 (") and names[3].startswith("rnr representative=64 (")
    assert label(found[1]) == "rnr quantile=0.2"


def test_returns_and_accuracies_do_not_meet() -> None:
    supervised, control = contests([result(), acting()])
    assert (supervised.score, control.score) == ("final_accuracy", "final_return")
