"""RL runs: counts, determinism, rewards, evaluation, diagnosis."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.diagnosis.loading import networks_of_run
from plastibench.training import checkpoint
from plastibench.training.saved_run import open_run
from tests.support.networks import parameters, same_tensors
from tests.support.rl import tiny_rl
from tests.support.runs import go, timeless


def test_steps_updates_and_frames_are_counted_separately(tmp_path: Path) -> None:
    result = go(tiny_rl(agent_options={"replay_ratio": 0.5}), tmp_path)
    cost = result["cost"]
    assert (cost["agent_steps"], cost["environment_steps"], cost["updates"]) == (240, 240, 100)  # 0.5 · (240 − 40)
    assert [point["steps"] for point in result["returns"]] == [0, 80, 160, 240]
    assert cost["memory_bytes"] == 120 * (4 + 4 + 4 + 4 + 1) + (30 + 1 + 1) * 4 * 16  # transitions and frames
    with open(next(tmp_path.iterdir()) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"return", "q-bias", "loss", "training-return", "q-churn", "policy-churn"} <= {row["metric"] for row in rows}
    assert {row["steps"] for row in rows if row["metric"] == "return"} == {"0", "80", "160", "240"}
    assert {row["metric"] for row in rows if row["metric"].startswith("plasticity-critic/")} >= {
        "plasticity-critic/dormant-ratio",
        "plasticity-critic/effective-rank",
    }


@pytest.mark.parametrize(("ratio", "updates"), [(0.3, 60), (1.0, 200), (2.5, 500)])
def test_replay_ratio_is_updates_per_agent_step(tmp_path: Path, ratio: float, updates: int) -> None:
    assert go(tiny_rl(agent_options={"replay_ratio": ratio}), tmp_path)["cost"]["updates"] == pytest.approx(
        updates, abs=1
    )


@pytest.mark.parametrize("n_step", [1, 5])
def test_delayed_updates_are_made_up_for(tmp_path: Path, n_step: int) -> None:
    env_options = {"tasks": 3, "steps": 80, "clear_replay": True}
    agent_options = {"replay_ratio": 1.0, "n_step": n_step}
    spec = tiny_rl(env="rl-minatar-permuted", agent="dqn-cnn", env_options=env_options, agent_options=agent_options)
    assert go(spec, tmp_path)["cost"]["updates"] == 240 - 40


def test_runs_are_deterministic_and_depend_on_the_seed(tmp_path: Path) -> None:
    one, again, other = (go(tiny_rl(seed=seed), tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c")))
    assert timeless(one) == timeless(again) and one["returns"] != other["returns"]


def test_evaluation_frequency_does_not_change_dqn_training(tmp_path: Path) -> None:
    found = []
    for every in (40, 120):
        spec = tiny_rl(env_options={"evaluate_every": every}, agent_options={"prioritized": True})
        go(spec, tmp_path)
        found.append(torch.load(tmp_path / spec.id / "final.pt", weights_only=True)["networks"][0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_evaluation_frequency_does_not_change_sac_training(tmp_path: Path) -> None:
    found = []
    for every in (40, 120):
        spec = tiny_rl(env="rl-pendulum", agent="sac-mlp", env_options={"evaluate_every": every})
        go(spec, tmp_path)
        found.append(torch.load(tmp_path / spec.id / "final.pt", weights_only=True)["networks"][1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_rewards_are_clipped_before_they_are_summed(started: Any) -> None:
    trainer, _ = started(
        tiny_rl(env="rl-pendulum", agent="sac-mlp", agent_options={"clip_rewards": True, "n_step": 3}), 80
    )
    batch = trainer.buffer.sample_without_replacement(100, torch.Generator())
    assert batch["reward"].tolist() == pytest.approx([-(1 + 0.99 + 0.99**2)] * len(batch))  # all rewards are negative
    assert trainer.curve[-1].value < -60


def test_returns_of_shortened_episodes_are_not_normalized(tmp_path: Path) -> None:
    usual = go(tiny_rl(env_options={"max_episode_steps": 0}), tmp_path)
    assert usual["summary"]["normalized_return"] is not None
    shorter = go(tiny_rl(env_options={"max_episode_steps": 30}), tmp_path)
    assert shorter["summary"]["normalized_return"] is None


@pytest.mark.parametrize("clear", [True, False])
def test_replay_buffer_is_kept_or_cleared_at_task_boundaries(started: Any, clear: bool) -> None:
    options = {"tasks": 2, "steps": 80, "clear_replay": clear}
    trainer, _ = started(tiny_rl(env="rl-minatar-permuted", agent="dqn-cnn", env_options=options), 84)
    assert trainer.task == 1 and len(trainer.buffer) == (4 if clear else 84)


@pytest.mark.parametrize(("name", "discount"), [("tests/Truncated-v0", 0.99), ("tests/Terminated-v0", 0.0)])
def test_values_are_bootstrapped_after_truncation_only(started: Any, name: str, discount: float) -> None:
    trainer, _ = started(tiny_rl(env="gym", env_options={"id": name, "max_episode_steps": 0}), 100)
    batch = trainer.buffer.sample_without_replacement(100, torch.Generator())
    old, new = batch["observation"].flatten(), batch["next_observation"].flatten()
    last = old % 100 == 6
    assert last.sum() > 5 and (batch["discount"][~last] == pytest.approx(0.99)) and (new[~last] == old[~last] + 1).all()
    assert batch["discount"][last].tolist() == pytest.approx([discount] * int(last.sum()))
    if discount:
        assert (new[last] == old[last] + 1).all()  # the final frame, not the first of the next episode


def test_runs_with_long_n_step_returns_can_be_diagnosed(tmp_path: Path) -> None:
    spec = tiny_rl(env_options={"envs": 64, "steps": 640}, agent_options={"n_step": 20})
    go(spec, tmp_path)
    (network, *_) = networks_of_run(tmp_path / spec.id, None, "cpu", samples=16, data_dir=tmp_path)
    assert network is not None


def test_unfinished_run_is_diagnosed_in_its_current_task(started: Any, tmp_path: Path) -> None:
    spec = tiny_rl(env="rl-minatar-permuted", agent="dqn-cnn", env_options={"tasks": 3, "steps": 80})
    trainer, _ = started(spec, 120)
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": trainer.state_dict()})
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    (found,) = networks_of_run(tmp_path, None, "cpu", samples=8, data_dir=tmp_path)
    assert found.data.endswith("in task 2")


def test_saved_run_has_targets_and_temperature(tmp_path: Path) -> None:
    spec = tiny_rl(env="rl-pendulum", agent="sac-mlp", agent_options={"lr": 1e-2})
    go(spec, tmp_path)
    extra = torch.load(tmp_path / spec.id / "final.pt", weights_only=True)["extra"]
    rl_agent = open_run(tmp_path / spec.id, "cpu", tmp_path).agent
    assert float(rl_agent._log_temperature) == float(extra["temperature"]) != 0
    found = rl_agent.targets["critic"].module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in extra["targets"]["critic"].items())
    assert not same_tensors(
        parameters(rl_agent.targets["critic"].module), parameters(rl_agent.networks["critic"].module)
    )
