"""Runs in which an agent acts: schedules, interventions on networks and targets, exact resume."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.spec import RunSpec
from plastibench.diagnosis.loading import networks_of_run
from plastibench.training import checkpoint
from plastibench.training.learner import Learner
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.rollout import evaluate_policy
from plastibench.training.runner import Interrupted, make_trainer, run
from plastibench.training.saved_run import open_run
from plastibench.training.trainer import Trainer
from tests.helpers import need_priorities
from tests.training.test_runner import Stopped, assert_same_run, timeless

QUICK = {"steps": 240, "envs": 4, "evaluate_every": 80, "evaluation_episodes": 2, "max_episode_steps": 60}
SMALL = {"hidden": (8, 8), "batch_size": 8, "learning_starts": 40, "buffer_size": 120, "replay_ratio": 0.5}


def tiny(
    intervention: str = "none",
    env: str = "rl-cartpole",
    agent: str = "dqn-mlp",
    *,
    env_options: dict[str, Any] | None = None,
    agent_options: dict[str, Any] | None = None,
    **options: Any,
) -> RunSpec:
    if (agent_options or {}).get("prioritized"):
        need_priorities()
    return RunSpec.make(
        env,
        agent,
        intervention,
        env_options={**QUICK, **(env_options or {})},
        agent_options={**SMALL, **(agent_options or {})},
        device="cpu",
        representative=options.pop("representative", 64),
        **options,
    )


def go(spec: RunSpec, folder: Path, **options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(run(spec, runs_dir=folder, quiet=True, threads=1, **options).to_dict()))


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Any]:
    """A function that makes a run and lets it learn for some steps."""
    trainers: list[Trainer] = []

    def begin(spec: RunSpec, steps: int = 160) -> tuple[OffPolicyTrainer, OffPolicyAgent]:
        env = spec.create("env").make()
        agent = spec.create("agent").build(env, spec.run.seed, torch.device("cpu"))
        trainer = make_trainer(spec, env, agent, folder=tmp_path)
        trainers.append(trainer)
        assert isinstance(trainer, OffPolicyTrainer)
        trainer.begin()
        while trainer.steps < steps:
            trainer.advance()
        return trainer, agent

    yield begin
    for trainer in trainers:
        trainer.close()


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# What a run leaves ------------------------------------------------------------------------------------------------


def test_steps_updates_and_frames_are_counted_apart(tmp_path: Path) -> None:
    result = go(tiny(agent_options={"replay_ratio": 0.5}), tmp_path)
    cost = result["cost"]
    assert (cost["agent_steps"], cost["environment_steps"], cost["updates"]) == (240, 240, 100)  # 0.5 · (240 − 40)
    assert [point["steps"] for point in result["returns"]] == [0, 80, 160, 240]
    assert cost["memory_bytes"] == 120 * (4 + 4 + 4 + 4 + 1) + (30 + 1 + 1) * 4 * 16  # transitions, and rows of frames
    with open(next(tmp_path.iterdir()) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"return", "q-bias", "loss", "training-return", "q-churn", "policy-churn"} <= {row["metric"] for row in rows}
    assert {row["steps"] for row in rows if row["metric"] == "return"} == {"0", "80", "160", "240"}
    assert {row["metric"] for row in rows if row["metric"].startswith("plasticity-critic/")} >= {
        "plasticity-critic/dormant-ratio",
        "plasticity-critic/effective-rank",
    }


@pytest.mark.parametrize(("ratio", "updates"), [(0.3, 60), (1.0, 200), (2.5, 500), (0.0, 0)])
def test_the_replay_ratio_is_updates_per_step(tmp_path: Path, ratio: float, updates: int) -> None:
    assert go(tiny(agent_options={"replay_ratio": ratio}), tmp_path)["cost"]["updates"] == pytest.approx(updates, abs=1)


def test_the_same_spec_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    one, again, other = (go(tiny(seed=seed), tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c")))
    assert timeless(one) == timeless(again) and one["returns"] != other["returns"]


def test_evaluations_do_not_change_what_is_learned(tmp_path: Path) -> None:
    found = []
    for every in (40, 120):
        spec = tiny(env_options={"evaluate_every": every}, agent_options={"prioritized": True})
        go(spec, tmp_path)
        found.append(torch.load(tmp_path / spec.id / "final.pt", weights_only=True)["networks"][0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_evaluations_leave_the_noise_of_actions_alone(tmp_path: Path) -> None:
    found = []
    for every in (40, 120):
        spec = tiny(env="rl-pendulum", agent="sac-mlp", env_options={"evaluate_every": every})
        go(spec, tmp_path)
        found.append(torch.load(tmp_path / spec.id / "final.pt", weights_only=True)["networks"][1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_only_signs_of_rewards_are_learned_where_asked_one_by_one_before_they_are_summed(begun: Any) -> None:
    trainer, _ = begun(tiny(env="rl-pendulum", agent="sac-mlp", agent_options={"clip_rewards": True, "n_step": 3}), 80)
    batch = trainer.buffer.sample_without_replacement(100, torch.Generator())
    assert batch["reward"].tolist() == pytest.approx([-(1 + 0.99 + 0.99**2)] * len(batch))  # all rewards are negative
    assert trainer.curve[-1].value < -60


def test_two_interventions_see_the_same_environment_until_the_first_acts(tmp_path: Path) -> None:
    none, reset = (go(tiny(name, every=80), tmp_path) for name in ("none", "reset"))
    assert none["returns"][:2] == reset["returns"][:2] and none["returns"] != reset["returns"]


# Interventions ----------------------------------------------------------------------------------------------------

# There is no attention, and a norm before every nonlinearity already.
DO_NOT_FIT = {("rnr-attention", "sac-mlp"), ("layernorm", "sac-mlp")}


@pytest.mark.parametrize(
    "intervention",
    [
        "reset",
        "reset-head",
        "reset-last-k",
        "shrink-perturb",
        "redo",
        "regrama",
        "low-gradient-quantile",
        "rnr",
        "recouple",
    ],
)
@pytest.mark.parametrize(
    ("env", "agent", "options"),
    [
        ("rl-cartpole", "dqn-mlp", {"dueling": True, "layer_norm": True}),
        ("rl-cartpole", "sac-mlp", {}),
        ("rl-pendulum", "sac-mlp", {"critics": 3, "layer_norm": True}),
        ("rl-minatar-breakout", "dqn-cnn", {"atoms": 5}),
        ("rl-minatar-breakout", "sac-vit", {"dim": 8, "heads": 1, "depth": 1, "patch_size": 5}),
    ],
)
def test_every_intervention_acts_on_every_network_of_every_agent_and_on_no_target(
    begun: Any, intervention: str, env: str, agent: str, options: dict[str, Any]
) -> None:
    trainer, learner = begun(tiny(intervention, env, agent, agent_options=options), 80)
    before = {role: weights(network.module) for role, network in learner.networks.items()}
    targets = {role: weights(target.module) for role, target in learner.targets.items()}
    trainer.intervene()
    for role, network in learner.networks.items():
        assert not same(before[role], weights(network.module)), role
        assert all(torch.isfinite(p).all() for p in network.module.parameters())
    assert all(same(targets[role], weights(target.module)) for role, target in learner.targets.items())
    trainer.advance()  # and learning goes on
    assert {report["role"] for report in trainer.reports} == set(learner.networks)


@pytest.mark.parametrize("intervention", registry.interventions.all())
@pytest.mark.parametrize(
    ("env", "agent", "options"),
    [
        ("rl-pendulum", "sac-mlp", {"critics": 3, "layer_norm": True}),
        ("rl-minatar-breakout", "dqn-vit", {"dim": 8, "heads": 1, "depth": 1, "patch_size": 5}),
    ],
)
def test_every_registered_intervention_runs_on_agents_that_act_or_says_why_not(
    begun: Any, intervention: str, env: str, agent: str, options: dict[str, Any]
) -> None:
    spec = tiny(intervention, env, agent, agent_options={**options, "target_every": 10**6})
    if (intervention, agent) in DO_NOT_FIT:
        with pytest.raises(UserError):
            begun(spec, 80)[0].intervene()
        return
    trainer, learner = begun(spec, 80)
    targets = {
        role: {name: p.detach().clone() for name, p in target.module.named_parameters()}
        for role, target in learner.targets.items()
    }
    trainer.intervene()
    for role, target in learner.targets.items():
        now = dict(target.module.named_parameters())
        assert list(now) == [name for name, _ in learner.networks[role].module.named_parameters()]
        assert all(torch.equal(now[name], value) for name, value in targets[role].items() if name in now)
    trainer.advance()
    for network in learner.networks.values():
        assert all(torch.isfinite(p).all() for p in network.module.parameters())
    assert {report["role"] for report in trainer.reports} == set(learner.networks)


def test_only_the_networks_of_the_roles_are_worked_on(begun: Any) -> None:
    trainer, learner = begun(tiny("reset", "rl-pendulum", "sac-mlp", roles=("critic",)))
    actor, critic = (weights(learner.networks[role].module) for role in ("actor", "critic"))
    trainer.intervene()
    assert same(actor, weights(learner.networks["actor"].module))
    assert not same(critic, weights(learner.networks["critic"].module))


@pytest.mark.parametrize("intervention", ["weight-clipping", "parseval", "rnr"])
def test_what_works_on_layers_finds_them_in_a_target_that_it_works_on_likewise(begun: Any, intervention: str) -> None:
    trainer, learner = begun(tiny(intervention, agent_options={"target_policy": "same"}), steps=40)
    assert set(trainer.targets.interventions) == {"critic"}
    assert not any(p.requires_grad for p in learner.targets["critic"].module.parameters())


@pytest.mark.parametrize("policy", ["keep", "copy", "same"])
def test_targets_are_kept_copied_or_worked_on_likewise(begun: Any, policy: str) -> None:
    trainer, learner = begun(tiny("reset", agent_options={"target_policy": policy, "target_every": 10**6}))
    target, network = learner.targets["critic"].module, learner.networks["critic"].module
    before = weights(target)
    trainer.intervene()
    trainer.targets.after_intervention(trainer.representative)
    after, copied = weights(target), weights(network)
    assert (same(before, after), same(after, copied)) == {
        "keep": (True, False),
        "copy": (False, True),
        "same": (False, False),
    }[policy]
    assert not any(p.requires_grad for p in target.parameters())


def test_rnr_keeps_the_values_that_a_reset_forgets_and_revives_units(begun: Any) -> None:
    change = {}
    for name in ("rnr", "reset"):
        trainer, learner = begun(tiny(name, agent_options={"hidden": (64, 64), "lr": 3e-3}, representative=200), 240)
        batch = trainer.representative()
        before = learner.value(batch["observation"], batch["action"])
        trainer.intervene()
        after = learner.value(batch["observation"], batch["action"])
        change[name] = float((after - before).norm() / before.norm())
    assert change["rnr"] < 0.25 < 0.5 < change["reset"]
    assert trainer.reports[-1]["revived_fraction"] == 1.0


def test_schedules_count_updates_end_when_asked_and_offline_updates_come_on_top(tmp_path: Path) -> None:
    spec = tiny("reset", agent_options={"replay_ratio": 1.0}, every=50, until=100, offline_updates=7)
    result = go(spec, tmp_path)
    # Offline updates shift the multiples of 50 that an update lands on, and none of them intervenes by itself.
    assert [report["update"] for report in result["interventions"]] == [50, 100]
    assert result["cost"]["updates"] == 200 + 2 * 7


def test_interventions_come_at_task_switches_and_are_evaluated(tmp_path: Path) -> None:
    spec = tiny("reset", "rl-minatar-permuted", "dqn-cnn", env_options={"tasks": 3, "steps": 80})
    result = go(spec, tmp_path)
    assert [(event["task"], event["steps"]) for event in result["events"]] == [(1, 80), (2, 160)]
    assert [report["update"] for report in result["interventions"]] == [event["update"] for event in result["events"]]
    assert {point["task"] for point in result["returns"]} == {0, 1, 2}


def test_targets_take_over_what_interventions_do_to_weights_after_an_update(begun: Any) -> None:
    options = {"target_every": 5, "lr": 1e-2, "replay_ratio": 1.0}
    trainer, learner = begun(tiny("weight-clipping", agent_options=options), 80)
    assert trainer.learner.updates == 40  # a copy has just been made
    assert same(weights(learner.targets["critic"].module), weights(learner.networks["critic"].module))


def test_churn_is_that_of_an_update_and_not_of_an_intervention(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"tasks": 2, "steps": 80, "clear_replay": True}
    trainer, _ = begun(tiny("reset", "rl-minatar-permuted", "dqn-cnn", env_options=options), 80)
    assert trainer._churn is not None  # the evaluation at the end of the task looked at the network
    seen = []
    monkeypatch.setattr(trainer, "_measure_churn", lambda *answers: seen.append(trainer.learner.updates))
    trainer.advance()
    assert len(trainer.reports) == 1 and trainer.steps == 84 and trainer.learner.updates > 20 and not seen


@pytest.mark.parametrize("n_step", [1, 5])
def test_updates_that_wait_for_a_first_transition_are_made_up_for(tmp_path: Path, n_step: int) -> None:
    env_options = {"tasks": 3, "steps": 80, "clear_replay": True}
    agent_options = {"replay_ratio": 1.0, "n_step": n_step}
    spec = tiny(env="rl-minatar-permuted", agent="dqn-cnn", env_options=env_options, agent_options=agent_options)
    assert go(spec, tmp_path)["cost"]["updates"] == 240 - 40


@pytest.mark.parametrize("clear", [True, False])
def test_the_memory_outlives_a_switch_unless_it_is_cleared(begun: Any, clear: bool) -> None:
    options = {"tasks": 2, "steps": 80, "clear_replay": clear}
    trainer, _ = begun(tiny(env="rl-minatar-permuted", agent="dqn-cnn", env_options=options), 84)
    assert trainer.task == 1 and len(trainer.buffer) == (4 if clear else 84)


# Exact resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervention", "env", "agent", "options"),
    [
        ("rnr", "rl-cartpole", "dqn-mlp", {"prioritized": True, "n_step": 3}),
        ("shrink-perturb", "rl-pendulum", "sac-mlp", {"target_policy": "same"}),
        ("redo", "rl-minatar-permuted", "dqn-cnn", {"target_policy": "copy", "atoms": 5}),
        ("reset", "rl-cartpole", "sac-mlp", {"storage": "memmap"}),
    ],
)
@pytest.mark.parametrize("crash", [3, 37, 61])
def test_a_run_that_crashed_and_went_on_is_the_run_that_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intervention: str, env: str, agent: str, options: Any, crash: int
) -> None:
    env_options = {"tasks": 2, "steps": 120} if "permuted" in env else {}
    every = 0 if "permuted" in env else 25
    agent_options = {"replay_ratio": 0.4, **options}
    spec = tiny(intervention, env, agent, env_options=env_options, agent_options=agent_options, every=every)
    go(spec, tmp_path / "whole")
    done, original = [0], Learner.learn

    def learn(self: Learner, batch: Any) -> None:
        done[0] += 1
        if done[0] == crash:
            raise Stopped
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "part", checkpoint_seconds=0)
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


class Doubles(gymnasium.Env[Any, Any]):
    """Actions of double precision: last bits of arithmetic with them are in the reward, and in nothing that is seen."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space: Any = gymnasium.spaces.Box(-1, 1, (2,), np.float64)

    def _seen(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._seen(), float(np.sin(100 * action).sum()), False, self.steps >= 20, {}


class FromOne(Doubles):
    action_space = gymnasium.spaces.Discrete(3, start=1)


class Whole(Doubles):
    action_space = gymnasium.spaces.Box(0, 5, (2,), np.int64)


for _made in (Doubles, FromOne, Whole):
    gymnasium.register(f"tests/{_made.__name__}-v0", entry_point=_made)


def test_actions_of_double_precision_are_acted_out_again_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(env="gym", agent="sac-mlp", env_options={"id": "tests/Doubles-v0"})
    go(spec, tmp_path / "whole")
    done, original = [0], OffPolicyTrainer.advance

    def advance(self: OffPolicyTrainer) -> None:
        done[0] += 1
        if done[0] == 25:
            raise Stopped
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "advance", advance)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "part", checkpoint_seconds=0)
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


@pytest.mark.parametrize("agent", ["dqn-mlp", "sac-mlp"])
def test_the_bias_is_that_of_the_critic_that_acts(begun: Any, agent: str) -> None:
    trainer, learner = begun(tiny(agent=agent), steps=80)
    seen = torch.from_numpy(trainer.seen)
    slow = {role: copy.deepcopy(network.module) for role, network in learner.networks.items()}
    action = learner.act(seen, greedy=True)
    with torch.no_grad():
        assert torch.equal(learner.value(seen, action), learner.value(seen, action, slow))
        for parameter in slow["critic"].parameters():
            parameter.mul_(2.0)
        assert not torch.allclose(learner.value(seen, action), learner.value(seen, action, slow))
    tasks = (trainer.env_config, 0, learner)
    assert evaluate_policy(*tasks, {}, 7)[1] != evaluate_policy(*tasks, {"critic": slow["critic"]}, 7)[1]


def test_returns_of_shorter_episodes_are_not_normalised_by_the_usual_bounds(tmp_path: Path) -> None:
    usual = go(tiny(env_options={"max_episode_steps": 0}), tmp_path)
    assert usual["summary"]["normalised_return"] is not None
    shorter = go(tiny(env_options={"max_episode_steps": 30}), tmp_path)
    assert shorter["summary"]["normalised_return"] is None


def test_a_run_with_long_returns_in_many_environments_is_looked_at(tmp_path: Path) -> None:
    spec = tiny(env_options={"envs": 64, "steps": 640}, agent_options={"n_step": 20})
    go(spec, tmp_path)
    (network, *_) = networks_of_run(tmp_path / spec.id, None, "cpu", samples=16, data_dir=tmp_path)
    assert network is not None


@pytest.mark.parametrize("moment", [3, 9, 14])
def test_a_run_that_crashed_while_acting_went_on_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Also among the random actions before the first update (40 steps of 4 environments), and with an episode cut."""
    spec, done, original = tiny(env_options={"max_episode_steps": 11}), [0], OffPolicyTrainer.advance
    go(spec, tmp_path / "whole")

    def advance(self: OffPolicyTrainer) -> None:
        done[0] += 1
        if done[0] == moment:
            raise Stopped
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "advance", advance)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "part", checkpoint_seconds=0)
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


def test_a_stop_request_saves_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, original = tiny(), OffPolicyTrainer.advance
    go(spec, tmp_path / "whole")

    def advance(self: OffPolicyTrainer) -> None:
        original(self)
        if self.steps == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "advance", advance)
        with pytest.raises(Interrupted):
            go(spec, tmp_path / "part")
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("rl-cartpole", {"n_step": 3}),
        ("rl-cartpole", {"prioritized": True}),
        ("rl-minatar-permuted", {"storage": "memmap", "buffer_size": 400}),
    ],
)
def test_a_run_with_its_memory_in_checkpoints_goes_on_at_once_in_new_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, options: dict[str, Any]
) -> None:
    agent, more = ("dqn-cnn", {"tasks": 2, "steps": 120}) if "permuted" in env else ("dqn-mlp", {})
    spec = tiny("redo", env, agent, env_options=more, agent_options=options, checkpoint_memory=True)
    whole = go(spec, tmp_path / "whole")
    original = OffPolicyTrainer.advance

    def advance(self: OffPolicyTrainer) -> None:
        original(self)
        if self.steps == 160:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "advance", advance)
        with pytest.raises(Interrupted):
            go(spec, tmp_path / "part")
    held = checkpoint.load(tmp_path / "part" / spec.id / "checkpoint.pt")["trainer"]
    assert len(held["buffer"]["transitions"]["frame_index"]) == min(160, spec.agent[1]["buffer_size"])
    assert not any(map(len, held["actions"]))
    shutil.copytree(tmp_path / "part", tmp_path / "again")
    steps: list[int] = []

    def step(self: OffPolicyTrainer, action: Any) -> None:
        steps.append(self.steps)
        act(self, action)

    act = OffPolicyTrainer._step
    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "_step", step)
        part = go(spec, tmp_path / "part")
    assert steps == list(range(160, 240, 4))  # nothing is acted out again
    assert part["cost"]["updates"] == whole["cost"]["updates"]
    assert [point["steps"] for point in part["returns"]] == [point["steps"] for point in whole["returns"]]
    go(spec, tmp_path / "again")
    assert_same_run(tmp_path / "again" / spec.id, tmp_path / "part" / spec.id)


def test_files_of_the_memory_that_a_killed_run_left_are_no_obstacle(tmp_path: Path) -> None:
    spec = tiny(agent_options={"storage": "memmap"})
    left = tmp_path / "killed" / spec.id / "memory"
    left.mkdir(parents=True)
    (left / "frames.memmap").write_bytes(b"old")
    go(spec, tmp_path / "killed")
    go(spec, tmp_path / "whole")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "killed" / spec.id)


def test_what_is_left_of_a_run_is_looked_at_with_its_targets_and_temperature(tmp_path: Path) -> None:
    spec = tiny(env="rl-pendulum", agent="sac-mlp", agent_options={"lr": 1e-2})
    go(spec, tmp_path)
    extra = torch.load(tmp_path / spec.id / "final.pt", weights_only=True)["extra"]
    learner = open_run(tmp_path / spec.id, "cpu", tmp_path).agent
    assert float(learner._log_temperature) == float(extra["temperature"]) != 0
    found = learner.targets["critic"].module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in extra["targets"]["critic"].items())
    assert not same(weights(learner.targets["critic"].module), weights(learner.networks["critic"].module))


def test_a_stopped_run_is_diagnosed_in_its_current_task(begun: Any, tmp_path: Path) -> None:
    spec = tiny(env="rl-minatar-permuted", agent="dqn-cnn", env_options={"tasks": 3, "steps": 80})
    trainer, _ = begun(spec, 120)
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": trainer.state_dict()})
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    (found,) = networks_of_run(tmp_path, None, "cpu", samples=8, data_dir=tmp_path)
    assert found.data.endswith("in task 2")


class Counter(gymnasium.Env[Any, Any]):
    """Shows how many steps it has made since it was made; ends every seventh, by a cut or by a terminal state."""

    def __init__(self, terminal: bool, honest: bool = True) -> None:
        self.observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.terminal, self.count = terminal, 0
        self.noise = 0.0 if honest else float(np.random.default_rng().random())

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count += 100 - self.count % 100
        return self.shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        over = self.count % 100 == 7
        return self.shown(), 1.0, over and self.terminal, over and not self.terminal, {}

    def shown(self) -> Any:
        return np.array([self.count + self.noise], np.float32)


for _name, _options in (
    ("Cut", {"terminal": False}),
    ("End", {"terminal": True}),
    ("Liar", {"terminal": True, "honest": False}),
):
    gymnasium.register(f"{_name}-v0", entry_point=Counter, kwargs=_options)


@pytest.mark.parametrize(("name", "discount"), [("Cut-v0", 0.99), ("End-v0", 0.0)])
def test_values_are_bootstrapped_where_an_episode_was_cut_and_not_where_it_ended(
    begun: Any, name: str, discount: float
) -> None:
    trainer, _ = begun(tiny(env="gym", env_options={"id": name, "max_episode_steps": 0}), 100)
    batch = trainer.buffer.sample_without_replacement(100, torch.Generator())
    old, new = batch["observation"].flatten(), batch["next_observation"].flatten()
    last = old % 100 == 6
    assert last.sum() > 5 and (batch["discount"][~last] == pytest.approx(0.99)) and (new[~last] == old[~last] + 1).all()
    assert batch["discount"][last].tolist() == pytest.approx([discount] * int(last.sum()))
    if discount:
        assert (new[last] == old[last] + 1).all()  # the final frame, not the first of the next episode


class Knowing:
    """Draws one of two actions by chance and knows the soft value of each, with a temperature of 1."""

    device, config = torch.device("cpu"), SimpleNamespace(gamma=0.9)

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def sample(self, observation: Any, draws: Any, modules: Any) -> Any:
        return torch.randint(2, (len(observation),), generator=draws), torch.full((len(observation),), math.log(2))

    def act(self, observation: Any, greedy: bool, modules: Any) -> Any:
        return torch.zeros(len(observation), dtype=torch.long)

    def value(self, observation: Any, action: Any, modules: Any = None) -> Any:
        left = 7 - observation.flatten() % 100 if self.ends else math.inf * torch.ones(len(observation))
        later = torch.where(left.isinf(), 0.0, 0.9 ** (left - 1))
        rewards = (1 - 0.9 * later) / (1 - 0.9)  # 1 + 0.9 + ... of `left` steps
        return rewards + math.log(2) * (rewards - 1)  # and the entropy of all actions but the first

    def transform_reward(self, reward: Any) -> Any:
        return reward


@pytest.mark.parametrize("name", ["End-v0", "Cut-v0"])
def test_a_critic_that_knows_its_soft_values_has_no_bias(name: str) -> None:
    options = {"id": name, "evaluation_episodes": 3, "max_episode_steps": 0}
    scenario = build(registry.envs["gym"].load(), {**registry.envs["gym"].defaults, **options}, "env")
    knowing: Any = Knowing(ends=name == "End-v0")
    value, bias = evaluate_policy(scenario, 0, knowing, {}, 0, torch.Generator().manual_seed(0))
    assert value == 7 and bias == pytest.approx(0, abs=1e-4)
    _, greedy = evaluate_policy(scenario, 0, knowing, {}, 0)
    assert greedy > 0.5  # the entropy is not in the returns of greedy episodes


def test_an_environment_that_does_not_repeat_itself_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(env="gym", env_options={"id": "Liar-v0", "max_episode_steps": 0})

    def learn(self: Learner, batch: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn)
        with pytest.raises(Stopped):
            go(spec, tmp_path, checkpoint_seconds=0)
    with pytest.raises(UserError, match=r"not deterministic.*checkpoint-memory"):
        go(spec, tmp_path)


# Commands ---------------------------------------------------------------------------------------------------------


def test_the_command_compares_and_the_leaderboard_reads(say: Any, tmp_path: Path) -> None:
    flags = [f"--env.{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    flags += ["--agent.hidden=8,8", "--agent.batch-size=8", "--agent.learning-starts=40", "--runs-dir", str(tmp_path)]
    done = say("run", "rl-cartpole", "--agent", "dqn-mlp", "--intervention", "none,rnr", "--every", "20",
               "--intervention.roles", "critic", "--quiet", "--device", "cpu", *flags)  # fmt: skip
    assert done.status == 0, done.err
    assert "return after steps" in done.out and "rnr every=20 roles=critic" in done.out
    board = say("leaderboard", "--runs-dir", str(tmp_path))
    assert board.status == 0 and "Q bias" in board.out and "rl-cartpole" in board.out
    figure = say("plot", "overview", tmp_path / "f.png", "--runs-dir", tmp_path)
    assert figure.status == 0 and (tmp_path / "f.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rl-cartpole", "--agent", "dqn-mlp", "--roles", "critics"], "no network 'critics'; did you mean 'critic'"),
        (["rl-cartpole", "--agent", "vit-nano"], "a classifier needs a task stream"),
        (["cl-digits", "--agent", "dqn-mlp"], "need an RL environment"),
        (["rl-pendulum", "--agent", "dqn-mlp"], "needs discrete actions"),
        (["rl-cartpole", "--agent", "dqn-vit"], "is for images"),
        (["gym", "--env.id", "Nothing-v0", "--agent", "dqn-mlp"], "no environment 'Nothing-v0'"),
        (["rl-minatar-pong", "--agent", "dqn-mlp"], "no env 'rl-minatar-pong'"),
        (["rl-cartpole", "--agent", "dqn-mlp", "--agent.v-min", "20"], "is not below v-max"),
        (["rl-cartpole", "--agent", "dqn-mlp", "--agent.random-shift", "2"], "random-shift needs images"),
        (["rl-minatar-breakout", "--agent", "dqn-vit", "--agent.heads", "3"], "dim 64 is not a multiple of heads 3"),
        (["rl-minatar-sequence", "--agent", "dqn-mlp", "--env.games", "breakout,pong"], "no MinAtar game 'pong'"),
        (["rl-slippery-ant", "--agent", "sac-mlp", "--env.low", "3"], "low 3.0 is above high 2.0"),
        (["rl-atari-pong", "--agent", "dqn-cnn", "--env.frames", "300"], "frames is 300"),
        (["gym", "--env.id", "tests/FromOne-v0", "--agent", "dqn-mlp"], "actions must be counted from 0, not from 1"),
        (["gym", "--env.id", "tests/Whole-v0", "--agent", "sac-mlp"], "actions of a box must be real numbers"),
    ],
)
def test_wrong_requests_get_one_line(say: Any, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = say("run", *arguments, "--runs-dir", str(tmp_path), "--quiet")
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1, done.err
