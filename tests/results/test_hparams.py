from __future__ import annotations

from typing import Any

import pytest

from plastibench.config.spec import RunSpec
from plastibench.results.hparams import METRICS, differing_columns, hyperparameters, metric_values, trial_name
from plastibench.results.result import Cost, Summary
from tests.leaderboard.made import acting, result

QUANTILE = {"intervention_options": {"quantile": 0.2}}
LR = {"agent_options": {"lr": 0.01}}


def test_values_are_percentages_or_returns() -> None:
    cost = Cost(seconds=20.0, intervention_seconds=1.0, updates=7)
    summary = Summary(final_accuracy=0.9, mean_drop=0.1, auc=0.5, mean_recovery_epochs=3.0, unrecovered_fraction=0.0)
    same = {"cost %": 5.0, "seconds": 20.0, "updates": 7}
    row = metric_values(summary, cost)
    assert row == pytest.approx({"final %": 90, "drop %": 10, "recovered in": 3, "never %": 0, "AUC %": 50, **same})
    summary = Summary(final_return=9.0, average_return=5.0, mean_drop=1.0, unrecovered_fraction=1.0)
    row = metric_values(summary, cost)
    assert row == pytest.approx({"final return": 9, "return drop": 1, "never %": 100, "average return": 5, **same})
    for is_rl, made in ((False, result("rnr")), (True, acting("rnr"))):
        expected = {metric.name for metric in METRICS if (metric.rl if is_rl else metric.supervised)}
        assert set(metric_values(made.summary, made.cost)) <= expected


def test_a_spec_and_its_result_have_the_same_hyperparameters() -> None:
    more: dict[str, Any] = {**QUANTILE, **LR, "every": 5, "roles": ("network",)}
    made = result("rnr", 3, **more)
    spec = RunSpec.make(
        "cl-digits", "mlp", "rnr", env_options={"noise": (0.5, 0.1, 0.0), "epochs": 2}, seed=3, device="cpu", **more
    )
    values = hyperparameters(spec)
    assert values == hyperparameters(made)
    assert values["all options"].startswith("quantile=0.2, every=5, roles=network, lr=0.01, epochs=2")
    assert (values["quantile"], values["every"], values["agent.lr"], values["env.epochs"]) == ("0.2", "5", "0.01", "2")


@pytest.mark.parametrize(
    ("found", "columns"),
    [
        ([], ["intervention", "seed"]),
        ([result("none")], ["intervention", "seed"]),
        ([result("none"), result("none", 1)], ["seed"]),
        ([result("none"), result("rnr", 1)], ["intervention", "seed"]),
        ([result("rnr"), result("rnr", every=5)], ["every"]),
        ([result("rnr"), result("rnr", env_options={"epochs": 9})], ["env.epochs"]),
        ([result("rnr"), result("rnr", **QUANTILE), result("none", 1)], ["intervention", "quantile", "seed"]),
        ([result("none"), acting("none")], ["env"]),  # which says what the agent is
        ([result("none"), acting("none"), result("none", agent="vit-nano")], ["env", "agent"]),
        ([result("none"), acting("reset", 1)], ["env", "intervention", "seed"]),
        (
            [result("rnr"), result("none", 1), result("rnr", **QUANTILE), result("rnr", every=5, **LR)],
            ["intervention", "agent.lr", "quantile", "every"],  # no room for the seed
        ),
        (
            [
                *(result("rnr"), result("none", 1, **LR), result("rnr", **QUANTILE), result("rnr", every=5)),
                *(acting("none"), result("rnr", env_options={"epochs": 9})),
            ],
            ["env", "intervention", "all options"],
        ),
        (
            [
                result("rnr"),
                result("rnr", env="cl-mnist"),
                result("rnr", **QUANTILE),
                result("rnr", every=5, **LR),
                result("none"),
            ],
            ["env", "intervention", "agent.lr", "options"],
        ),
    ],
)
def test_columns_are_those_that_differ_and_few(found: list[Any], columns: list[str]) -> None:
    assert differing_columns(found) == columns and len(columns) <= 4
    assert set(columns) <= {name for run in found or [result()] for name in hyperparameters(run)}


@pytest.mark.parametrize(
    ("name", "more", "begins"),
    [
        ("none", {}, "none·s7·"),
        ("rnr", QUANTILE, "rnr·q=0.2·s7·"),
        ("rnr", {"every": 5}, "rnr·every=5·s7·"),
        ("shrink-perturb", {}, "shrink-pertu…·s7·"),
        ("shrink-perturb", {"every": 100}, "shr…·every=100·s7·"),
    ],
)
def test_trials_have_short_unique_names(name: str, more: dict[str, Any], begins: str) -> None:
    specs = [
        RunSpec.make(env, agent, name, seed=7, device="cpu", env_options={"epochs": epochs}, **more)
        for env in ("cl-digits", "relabel-digits")
        for agent in ("mlp", "vit-nano")
        for epochs in (3, 4)
    ]
    names = [trial_name(spec) for spec in specs]
    assert all(each.startswith(begins) and len(each) <= len(begins) + 8 for each in names)
    assert len(set(names)) == len(specs)


def test_options_are_abbreviated_without_ambiguity() -> None:
    options = {"l2_init__strength": 0.5, "rnr__quantile": 0.2}
    spec = RunSpec.make("cl-digits", "mlp", "l2-init+rnr", device="cpu", intervention_options=options)
    words = trial_name(spec).split("·")[1:-2]
    assert len(words) == 2 and len(set(words)) == 2 and words[0].endswith("=0.5") and words[1].endswith("=0.2")
