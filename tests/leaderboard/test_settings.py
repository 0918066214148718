from __future__ import annotations

from typing import Any

import pytest

from plastibench.leaderboard.settings import by_setting, label
from plastibench.results.result import Result
from tests.leaderboard.made import acting, result


def methods(found: list[Result]) -> list[list[tuple[str, list[int]]]]:
    return [[(method.name, list(method.runs)) for method in setting.methods] for setting in by_setting(found)]


def test_runs_that_differ_in_the_seed_are_one_method() -> None:
    found = [result(name, seed) for seed in (1, 0) for name in ("none", "reset")]
    assert methods(found) == [[("none", [0, 1]), ("reset", [0, 1])]]
    (setting,) = by_setting(found)
    assert setting.title == "cl-digits epochs=2 noise=0.5,0.1,0.0, mlp" and setting.differs == ""
    assert setting.base is not None and setting.base.name == "none"


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
def test_other_budgets_and_data_are_another_setting(other: dict[str, Any], named: str, reason: str) -> None:
    found = [result("none"), result("reset"), result("reset", **other)]
    usual, other_setting = by_setting(found)
    assert [method.name for method in usual.methods] == ["none", "reset"]
    assert [method.name for method in other_setting.methods] == ["reset"]
    assert named in other_setting.title and usual.title != other_setting.title
    for setting in (usual, other_setting):
        assert setting.differs == f"not comparable with other runs of cl-digits and mlp, which differ in {reason}"


def test_results_without_a_digest_join_the_only_digest() -> None:
    old = result("reset", data=None)
    assert len(by_setting([result("none"), old])) == 1
    assert len(by_setting([result("none"), result("none", data="ffffffffffff"), old])) == 3


def test_methods_with_other_updates_are_not_comparable() -> None:
    found = [result("none"), result("reset"), result("redo", cost={"updates": 90})]
    (setting,) = by_setting(found)
    assert [method.not_comparable for method in setting.methods] == ["", "", "90 updates instead of 60"]


def test_method_names_are_unique() -> None:
    found = [
        result("rnr"),
        result("rnr", intervention_options={"quantile": 0.2}),
        result("rnr", every=7),
        result("rnr", representative=64),
    ]
    (setting,) = by_setting(found)
    names = [method.name for method in setting.methods]
    assert names == ["rnr representative=2048", "rnr quantile=0.2", "rnr every=7", "rnr representative=64"]
    assert label(found[1]) == "rnr quantile=0.2"


def test_rl_and_supervised_runs_are_different_settings() -> None:
    supervised, control = by_setting([result(), acting()])
    assert (supervised.score, control.score) == ("final_accuracy", "final_return")
