"""An RL run that was interrupted ends exactly like one that was not."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.errors import UserError
from plastibench.training import checkpoint
from plastibench.training.learner import Learner
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.opened_run import Interrupted
from tests.support.rl import tiny_rl
from tests.support.runs import Stopped, assert_same_run, crash_at, go


@pytest.mark.sample(4)
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
def test_resume_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intervention: str, env: str, agent: str, options: Any, crash: int
) -> None:
    env_options = {"tasks": 2, "steps": 120} if "permuted" in env else {}
    every = 0 if "permuted" in env else 25
    agent_options = {"replay_ratio": 0.4, **options}
    spec = tiny_rl(intervention, env, agent, env_options=env_options, agent_options=agent_options, every=every)
    go(spec, tmp_path / "uninterrupted")
    crash_at(monkeypatch, crash, Learner, "learn")
    with pytest.raises(Stopped):
        go(spec, tmp_path / "resumed", checkpoint_seconds=0)
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


def test_float64_actions_are_replayed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_rl(env="gym", agent="sac-mlp", env_options={"id": "tests/Float64Actions-v0"})
    go(spec, tmp_path / "uninterrupted")
    crash_at(monkeypatch, 25, OffPolicyTrainer, "advance")
    with pytest.raises(Stopped):
        go(spec, tmp_path / "resumed", checkpoint_seconds=0)
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


@pytest.mark.sample(1)
@pytest.mark.parametrize("moment", [3, 9, 14])
def test_resume_after_a_crash_while_acting_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The moments include random actions before the first update, and truncated episodes."""
    spec = tiny_rl(env_options={"max_episode_steps": 11})
    go(spec, tmp_path / "uninterrupted")
    crash_at(monkeypatch, moment, OffPolicyTrainer, "advance")
    with pytest.raises(Stopped):
        go(spec, tmp_path / "resumed", checkpoint_seconds=0)
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


def test_stop_request_saves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, original = tiny_rl(), OffPolicyTrainer.advance
    go(spec, tmp_path / "uninterrupted")

    def advance(self: OffPolicyTrainer) -> None:
        original(self)
        if self.steps == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "advance", advance)
        with pytest.raises(Interrupted):
            go(spec, tmp_path / "resumed")
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("rl-cartpole", {"n_step": 3}),
        ("rl-cartpole", {"prioritized": True}),
        ("rl-minatar-permuted", {"storage": "memmap", "buffer_size": 400}),
    ],
)
def test_resume_with_a_saved_replay_buffer_starts_new_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, options: dict[str, Any]
) -> None:
    agent, more = ("dqn-cnn", {"tasks": 2, "steps": 120}) if "permuted" in env else ("dqn-mlp", {})
    acts = {} if "permuted" in env else {"every": 30}  # at task boundaries if there are any
    spec = tiny_rl("redo", env, agent, env_options=more, agent_options=options, checkpoint_memory=True, **acts)
    uninterrupted = go(spec, tmp_path / "uninterrupted")
    original = OffPolicyTrainer.advance

    def advance(self: OffPolicyTrainer) -> None:
        original(self)
        if self.steps == 160:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "advance", advance)
        with pytest.raises(Interrupted):
            go(spec, tmp_path / "resumed")
    saved = checkpoint.load(tmp_path / "resumed" / spec.id / "checkpoint.pt")["trainer"]
    assert len(saved["buffer"]["transitions"]["frame_index"]) == min(160, spec.agent[1]["buffer_size"])
    assert not any(map(len, saved["actions"]))
    shutil.copytree(tmp_path / "resumed", tmp_path / "again")
    steps: list[int] = []

    def step(self: OffPolicyTrainer, action: Any) -> None:
        steps.append(self.steps)
        act(self, action)

    act = OffPolicyTrainer._step
    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "_step", step)
        resumed = go(spec, tmp_path / "resumed")
    assert steps == list(range(160, 240, 4))  # no step is repeated
    assert resumed["cost"]["updates"] == uninterrupted["cost"]["updates"]
    assert [point["steps"] for point in resumed["returns"]] == [point["steps"] for point in uninterrupted["returns"]]
    go(spec, tmp_path / "again")
    assert_same_run(tmp_path / "again" / spec.id, tmp_path / "resumed" / spec.id)


def test_leftover_replay_buffer_files_are_replaced(tmp_path: Path) -> None:
    spec = tiny_rl(agent_options={"storage": "memmap"})
    left = tmp_path / "killed" / spec.id / "memory"
    left.mkdir(parents=True)
    (left / "frames.memmap").write_bytes(b"old")
    go(spec, tmp_path / "killed")
    go(spec, tmp_path / "uninterrupted")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "killed" / spec.id)


def test_nondeterministic_environments_cannot_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_rl(env="gym", env_options={"id": "tests/Nondeterministic-v0", "max_episode_steps": 0})
    crash_at(monkeypatch, 1, Learner, "learn")
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0)
    with pytest.raises(UserError, match=r"not deterministic.*checkpoint-memory"):
        go(spec, tmp_path)
