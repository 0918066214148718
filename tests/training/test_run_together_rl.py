"""RL runs in one process end as each of them ends by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.agents.dqn import DQNAgent
from plastibench.agents.dqn_stack import stackable_dqn
from plastibench.config.errors import RunError
from plastibench.config.spec import RunSpec
from plastibench.interventions.l2 import L2
from plastibench.results.result import Result
from plastibench.training import checkpoint, offpolicy_stack
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.offpolicy_stack import OffPolicyStack
from plastibench.training.opened_run import Interrupted, RunSettings
from plastibench.training.run_together import run_together
from tests.support.runs import Stopped, assert_same_run, crash_at, go

ENVS: dict[str, dict[str, Any]] = {
    "rl-cartpole": {"steps": 480, "evaluation_episodes": 2},
    "rl-bandit-digits": {"steps": 240, "tasks": 2, "images": 40, "evaluation_episodes": 40},
}
AGENT = {"hidden": (16, 8), "batch_size": 16, "learning_starts": 64, "target_every": 10, "replay_ratio": 0.25}
# One method of each kind, and the updates between two interventions (0: at task boundaries).
METHODS: list[tuple[str, dict[str, Any], int]] = [
    ("none", {}, 0),
    ("reset", {}, 30),
    ("rnr", {}, 25),
    ("redo", {"tau": 1.0}, 20),
    ("shrink-perturb", {}, 15),
    ("l2-init", {}, 0),
    ("upgd", {}, 0),
    ("hare-tortoise", {"momentum": 0.5}, 20),
    ("continual-backprop", {"rate": 0.1, "maturity": 1}, 0),
    ("plasticity-injection", {}, 80),
]


def spec(
    intervention: str = "none", options: Any = None, every: int = 0, *, env: str = "rl-cartpole", **changed: Any
) -> RunSpec:
    """The spec of a run that takes a fraction of a second; ``changed`` holds options of the agent, and the seed."""
    return RunSpec.make(
        env,
        "dqn-mlp",
        intervention,
        env_options={"envs": 8, "evaluate_every": 160, **ENVS[env]},
        agent_options={**AGENT, **{name: value for name, value in changed.items() if name != "seed"}},
        intervention_options=options or {},
        device="cpu",
        every=every,
        seed=changed.get("seed", 0),
        representative=64,
    )


def together(specs: list[RunSpec], folder: Path, **options: Any) -> list[Any]:
    return run_together(specs, RunSettings(folder, Path("data"), quiet=True, threads=1, **options))


def assert_as_alone(specs: list[RunSpec], tmp_path: Path) -> None:
    for each in specs:
        go(each, tmp_path / "alone")
        assert_same_run(tmp_path / "together" / each.id, tmp_path / "alone" / each.id)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many agents acted or were updated together, at each call."""
    found: dict[str, list[int]] = {"act_together": [], "update_together": []}

    def count(name: str) -> None:
        original = getattr(offpolicy_stack, name)

        def counted(members: Any, inputs: Any) -> Any:
            found[name].append(len(members))
            return original(members, inputs)

        monkeypatch.setattr(offpolicy_stack, name, counted)

    for name in found:
        count(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_every_kind_of_method(env: str, tmp_path: Path, sizes: dict[str, list[int]]) -> None:
    specs = [spec(*method, env=env, seed=seed) for seed, method in enumerate(METHODS)]
    results = together(specs, tmp_path / "together")
    assert [each.id for each, result in zip(specs, results, strict=True) if not isinstance(result, Result)] == []
    assert max(sizes["act_together"]) == max(sizes["update_together"]) >= len(specs) - 2
    assert {result.origin.stacked for result in results} >= {max(sizes["update_together"])}
    assert_as_alone(specs, tmp_path)


@pytest.mark.slow
def test_runs_of_different_agents(tmp_path: Path, sizes: dict[str, list[int]]) -> None:
    """Each shape and formula has its own stack; other lengths, rates and clipping share one."""
    options: list[dict[str, Any]] = [
        *({}, {"lr": 0.01, "clip": 0.0}, {"replay_ratio": 0.5, "tau": 0.5}, {"n_step": 3, "learning_starts": 100}),
        *({"loss": "huber"}, {"double": False}, {"batch_size": 8}, {"optimizer": "sgd"}),
        *({"dueling": True}, {"atoms": 5}, {"prioritized": True}, {"restart_optimizer": True}),
    ]
    specs = [spec(env="rl-cartpole", seed=seed, **each) for seed, each in enumerate(options)]
    results = together(specs, tmp_path / "together")
    assert [result.origin.stacked > 1 for result in results] == [
        not {"loss", "double", "batch_size", "dueling", "atoms", "prioritized"} & {*each} for each in options
    ]
    assert_as_alone(specs, tmp_path)


def test_interrupted_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [spec(*METHODS[number]) for number in (0, 1, 5)]
    stop: list[int] = []
    original, steps = OffPolicyStack.learn, [0]

    def stop_once(self: Any, trainers: Any) -> Any:
        steps[0] += 1
        if steps[0] == 20:
            stop.append(15)
        return original(self, trainers)

    monkeypatch.setattr(OffPolicyStack, "learn", stop_once)
    outcomes = together(specs, tmp_path / "together", stop=stop)
    assert all(isinstance(outcome, Interrupted) for outcome in outcomes)
    go(specs[0], tmp_path / "together")  # alone, the others together
    stop.clear()
    results = together(specs, tmp_path / "together", stop=stop)
    assert results[0].reused and not results[1].reused and results[1].origin.sessions
    assert_as_alone(specs, tmp_path)


def test_killed_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [spec(*METHODS[number], env="rl-bandit-digits") for number in (0, 2, 5)]
    crash_at(monkeypatch, 12, OffPolicyStack, "learn")
    with pytest.raises(Stopped):
        together(specs, tmp_path / "together", checkpoint_seconds=0)
    assert all((tmp_path / "together" / each.id / checkpoint.LATEST).exists() for each in specs)
    together(specs, tmp_path / "together")
    assert_as_alone(specs, tmp_path)


def test_a_run_that_diverges_does_not_affect_the_others(tmp_path: Path) -> None:
    specs = [spec(), spec(lr=1e30), spec(seed=1)]
    outcomes = together(specs, tmp_path / "together")
    assert isinstance(outcomes[1], RunError) and "try a smaller --agent.lr" in str(outcomes[1])
    assert "try a smaller" in (tmp_path / "together" / specs[1].id / "failure.txt").read_text()
    assert_as_alone([specs[0], specs[2]], tmp_path)


def test_an_environment_that_fails_ends_only_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, steps = OffPolicyTrainer.step, []

    def failing(self: OffPolicyTrainer, chosen: Any) -> None:
        steps.append(self.options.seed)
        if self.options.seed == 1 and self.steps > 200:
            raise RunError("the environment broke")
        original(self, chosen)

    specs = [spec(seed=seed) for seed in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "step", failing)
        outcomes = together(specs, tmp_path / "together")
    assert isinstance(outcomes[1], RunError) and "broke" in str(outcomes[1])
    assert steps.count(0) == steps.count(2) == 480 // 8, "the others went on"
    assert_as_alone([specs[0], specs[2]], tmp_path)


def test_an_error_inside_a_shared_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, network: Any, batch: Any) -> Any:
        raise KeyError("lost")

    specs = [spec(), spec("l2-init"), spec("rnr", every=20)]
    with monkeypatch.context() as patch:
        patch.setattr(L2, "penalty", broken)
        outcomes = together(specs, tmp_path / "together")
    assert isinstance(outcomes[1], Exception) and "lost" in str(outcomes[1])
    assert all(isinstance(outcomes[number], Result) for number in (0, 2))
    assert_as_alone([specs[0], specs[2]], tmp_path)


def test_a_classifier_beside_an_agent(tiny: Callable[..., RunSpec], tmp_path: Path) -> None:
    specs = [
        spec(),
        tiny(env="relabel-digits", agent="mlp"),
        spec(seed=1),
        tiny(env="relabel-digits", agent="mlp", seed=1),
    ]
    results = together(specs, tmp_path / "together")
    assert [result.origin.stacked for result in results] == [2, 2, 2, 2]
    assert_as_alone(specs, tmp_path)


class OwnDQN(DQNAgent):
    """An agent whose update is its own."""


def test_hooks_and_other_agents_are_not_stacked() -> None:
    config, env = spec().create("agent"), spec().create("env").make()
    agent = config.build(env, 0, torch.device("cpu"))
    found = stackable_dqn(agent)
    assert found is not None and found.is_current()
    for network in (agent.networks["critic"], agent.targets["critic"]):
        hook = network.module.register_forward_hook(lambda *_: None)
        assert not found.is_current() and stackable_dqn(agent) is None
        hook.remove()
    assert found.is_current() and stackable_dqn(OwnDQN(config, env, 0, torch.device("cpu"))) is None
