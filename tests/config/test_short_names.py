from __future__ import annotations

from plastibench.config.short_names import own_name, short_names, tables_of
from plastibench.config.spec import RunSpec


def names(*specs: RunSpec, **options: bool) -> list[str]:
    return short_names([tables_of(spec) for spec in specs], **options)


def spec(intervention: str = "none", agent: str = "mlp", env: str = "cl-digits", **options: object) -> RunSpec:
    method = {"quantile": options.pop("quantile")} if "quantile" in options else {}
    lr = {"lr": options.pop("lr")} if "lr" in options else {}
    return RunSpec.make(env, agent, intervention, intervention_options=method, agent_options=lr, **options)


def test_names_say_what_differs() -> None:
    assert names(spec(), spec("reset"), spec("rnr", quantile=0.2), spec("rnr", quantile=0.4, seed=1)) == [
        "none·s0",
        "reset·s0",
        "rnr·q=0.2·s0",
        "rnr·q=0.4·s1",
    ]
    assert names(spec(lr=0.001), spec(lr=0.01)) == ["none·lr=0.001·s0", "none·lr=0.01·s0"]
    assert names(spec("rnr", quantile=0.2)) == ["rnr·s0"]


def test_envs_and_agents_are_named_only_if_they_differ() -> None:
    assert names(spec(), spec(env="relabel-digits")) == ["cl-digits·none·s0", "relabel-digits·none·s0"]
    found = names(spec(), spec(agent="vit-nano"))  # options of different agents are not compared
    assert found == ["mlp·none·s0", "vit-nano·none·s0"]


def test_an_option_that_only_some_runs_have_is_shown_there() -> None:
    assert names(spec("redo"), spec("redo", roles=("classifier",)), spec("redo", every=5)) == [
        "redo·every=0·s0",
        "redo·every=0·roles=classifier·s0",
        "redo·every=5·s0",
    ]


def test_names_are_unique_unless_seeds_are_left_out() -> None:
    assert names(spec(), spec(), spec(seed=1)) == ["none·s0·1", "none·s0·2", "none·s1"]
    assert names(spec(), spec(seed=1), seeds=False) == ["none", "none"]
    close = names(spec(lr=0.1234567), spec(lr=0.12345671))
    assert len(set(close)) == 2


def test_a_single_run_is_named_by_what_is_not_default() -> None:
    assert own_name(spec("rnr", quantile=0.2, seed=3)) == "rnr·q=0.2"
    model = RunSpec.make("cl-digits", "timm", agent_options={"model": "resnet18"})  # an option without a default
    assert own_name(model) == "none"
    gym = RunSpec.make("gym", "dqn-mlp", "redo", env_options={"id": "CartPole-v1", "steps": 20_000}, every=100)
    assert own_name(gym).startswith("redo·") and "steps=20000" in own_name(gym)
