from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec, read_tables


def spec(**changes: Any) -> RunSpec:
    return RunSpec.make("cl-digits", "vit-nano", "rnr", **changes)


def test_options_without_a_sensible_default_are_required_but_old_results_keep_their_identity() -> None:
    for names, part, option, value in (
        (("gym", "dqn-mlp"), "env", "id", "CartPole-v1"),
        (("cl-digits", "timm"), "agent", "model", "resnet18"),
    ):
        with pytest.raises(UserError, match=f"needs --{part}.{option}, for example {value}"):
            RunSpec.make(*names)
        given = RunSpec.make(*names, **{f"{part}_options": {option: value}})
        assert given.changed(part) == {}, "what earlier versions wrote for the default"
        assert RunSpec.from_toml(given.to_toml()) == given
    assert RunSpec.make("rl-cartpole", "dqn-mlp").env[1]["id"] == "CartPole-v1"


@pytest.mark.parametrize("count", [200, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_combinations_of_names_survive_toml_and_have_unique_ids(count: int | None) -> None:
    ids = set()
    combinations = list(itertools.product(registry.envs.all(), registry.agents.all(), registry.interventions.all()))
    assert len(combinations) >= 8 * 8 * 17
    chosen = combinations if count is None else random.Random(0).sample(combinations, count)
    for names in chosen:
        needed = {"env_options": {"id": "Acrobot-v1"}} if names[0] == "gym" else {}
        needed |= {"agent_options": {"model": "resnet18"}} if names[1] == "timm" else {}
        first = RunSpec.make(*names, seed=3, **needed)
        again = RunSpec.from_toml(first.to_toml())
        assert again == first and again.id == first.id and again.to_toml() == first.to_toml()
        assert first.id.startswith("_".join((*names, "s3_")))
        ids.add(first.id)
    assert len(ids) == len(chosen)


@pytest.mark.parametrize(
    "changes",
    [
        {"env_options": {"train_size": 100, "noise": [0.25, 0.0], "path": 'a "b" \\c ü\n'}},
        {"agent_options": {"lr": "1e-5", "precision": "bfloat16"}},
        {"intervention_options": {"modules": r"blocks\.\d+\.mlp", "residual_writers": "no"}},
        {"seed": 7, "every": 100, "representative": 64, "device": "cpu", "deterministic": True},
    ],
)
def test_changed_options_survive_toml(changes: dict[str, Any]) -> None:
    first = spec(**changes)
    again = RunSpec.from_toml(first.to_toml())
    assert again == first and again.id == first.id != spec().id


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("rnr", "f6954b"),
        ("shrink-perturb", "2b060c"),
        ("shrink-perturb-keep20", "29b680"),
        ("reset", "b67236"),
        ("reset-last-k", "f34d75"),
        ("recouple", "b5b4d4"),
        ("redo", "ac06e1"),
    ],
)
def test_ids_of_older_specs_are_known(name: str, known: str) -> None:
    assert RunSpec.make("cl-digits", "vit-nano", name).legacy_ids() == (f"cl-digits_vit-nano_{name}_s0_{known}",)


def test_option_set_to_none_stays_none_in_toml() -> None:
    first = spec(env_options={"train_size": "none"})  # the default of cl-digits is 200
    assert first.create("env").train_size is None
    again = RunSpec.from_toml(first.to_toml())
    assert again.create("env").train_size is None
    assert again.id == first.id != spec().id


def test_recouple_around_another_method_survives_toml() -> None:
    first = RunSpec.make(
        "cl-digits", "mlp", "recouple", intervention_options={"inner": "redo", "inner_options": "tau=0.2,modules=all"}
    )
    again = RunSpec.from_toml(first.to_toml())
    assert again == first
    assert again.create("intervention")._inner.tau == 0.2


def test_id_depends_neither_on_spelling_nor_order_nor_gpu_index() -> None:
    one = spec(agent_options={"batch-size": "32", "lr": "1e-3"}, device="cuda:0")
    other = spec(agent_options={"lr": 0.001, "batch_size": 32.0}, device="cuda:1")
    assert one.id == other.id
    assert one.id != spec(agent_options={"batch-size": "32", "lr": "1e-3"}, device="cpu").id


@pytest.mark.parametrize(
    "changes",
    [
        {"env_options": {"epochs": 2}},
        {"env_options": {"noise": "0.5,0"}},
        {"agent_options": {"lr": 0.1}},
        {"intervention_options": {"tau": 0.3}},
        {"seed": 1},
        {"every": 10},
        {"representative": 10},
        {"deterministic": True},
        {"metrics": ("activity",)},
    ],
)
def test_every_changed_option_changes_the_id_and_only_seed_and_metrics_keep_the_group(changes: dict[str, Any]) -> None:
    assert spec(**changes).id != spec().id
    assert (spec(**changes).group() == spec().group()) == (not {"seed", "metrics"}.isdisjoint(changes))


def test_names_with_the_same_options_have_different_ids() -> None:
    explicit = RunSpec.make("cl-digits", "mlp", "reset", intervention_options={"select": "mlp"})
    named = RunSpec.make("cl-digits", "mlp", "reset-mlp")
    assert explicit.intervention[1] == named.intervention[1] and explicit.id != named.id


def test_changed_returns_differences_from_the_name_not_from_the_class() -> None:
    assert spec().changed("env") == {}
    found = spec(env_options={"epochs": 2, "train_size": 200}, intervention_options={"tau": 0.5})
    assert found.changed("env") == {"epochs": 2}
    assert found.changed("intervention") == {"tau": 0.5}
    assert RunSpec.make("cl-digits", "mlp", "reset-mlp").changed("intervention") == {}


def test_changed_includes_an_option_set_to_none() -> None:
    assert "train_size" in spec(env_options={"train_size": "none"}).changed("env")


def test_spec_creates_env_agent_and_intervention_with_its_options() -> None:
    found = spec(env_options={"epochs": 3}, agent_options={"dim": 32}, intervention_options={"quantile": 0.1})
    assert (found.create("env").epochs, found.create("env").train_size) == (3, 200)
    assert (found.create("agent").dim, found.create("agent").batch_size) == (32, 64)
    assert found.create("intervention").quantile == 0.1
    assert found.create("intervention") is not found.create("intervention")


def test_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().env = ("cl-mnist", {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().run.seed = 3


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("cl-digit", "mlp"), {}, "unknown env 'cl-digit'; did you mean 'cl-digits'?"),
        (("cl-digits", "mpl"), {}, "unknown agent 'mpl'; did you mean 'mlp'?"),
        (("cl-digits", "mlp", "rmr"), {}, "unknown intervention 'rmr'; did you mean 'rnr'?"),
        (("cl-digits", "mlp"), {"seed": -1}, "run: seed is -1; it must be at least 0"),
        (("cl-digits", "mlp"), {"sed": 1}, "run has no option 'sed'; did you mean 'seed'?"),
        (("cl-digits", "mlp"), {"agent_options": {"lr": "fast"}}, "agent mlp: lr is 'fast'; expected a number"),
        (("cl-digits", "mlp"), {"env_options": {"epochs": 0}}, "env cl-digits: epochs is 0; it must be at least 1"),
        (("cl-digits", "vit-nano"), {"agent_options": {"heads": 3}}, "dim 64 is not a multiple of heads 3"),
        (
            ("cl-digits", "mlp", "recouple"),
            {"intervention_options": {"inner_options": "taw=1"}},
            "intervention redo (inside recouple) has no option 'taw'; did you mean 'tau'?",
        ),
    ],
)
def test_invalid_names_and_options_are_reported(
    arguments: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        RunSpec.make(*arguments, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[env", "x is not valid TOML"),
        ("[agents]\nname='mlp'", "x: unknown table [agents]; did you mean 'agent'?"),
        ("env = 'cl-digits'", "x: env must be a table, as in [env]"),
        ("[env]\nepochs=2", "x: [env] has no name"),
        ("[env]\nname=3", "name"),
        ("[intervention]\nname=3", "name"),
    ],
)
def test_invalid_spec_file_is_reported(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_tables(text, "x")
    assert message in str(caught.value)


def test_spec_without_a_table_is_a_user_error() -> None:
    with pytest.raises(UserError, match="agent"):
        RunSpec.from_toml("[env]\nname='cl-digits'\n[intervention]\nname='none'\n")
