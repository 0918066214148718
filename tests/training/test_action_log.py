"""The log of actions is compact, and replays them bit for bit."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from plastibench.training import action_log
from plastibench.training.action_log import ActionLog
from plastibench.training.learner import Learner
from plastibench.training.offpolicy import OffPolicyTrainer
from tests.support.rl import tiny_rl


@pytest.mark.parametrize(
    ("space", "stored"),
    [
        (spaces.Discrete(2), np.uint8),
        (spaces.Discrete(256), np.uint8),
        (spaces.Discrete(257), np.int16),
        (spaces.Discrete(40_000), np.int32),
        (spaces.Box(-1, 1, (3,), np.float32), np.float32),
        (spaces.Box(-1, 1, (3,), np.float64), np.float64),
    ],
)
def test_actions_are_restored_exactly(monkeypatch: pytest.MonkeyPatch, space: Any, stored: Any) -> None:
    monkeypatch.setattr(action_log, "_ROWS", 4)
    space.seed(0)
    taken = [np.stack([space.sample() for _ in range(3)]) for _ in range(11)]
    if isinstance(space, spaces.Discrete):
        taken[5][1] = space.n - 1
    log = ActionLog(space)
    assert log.to_array().shape == (0,)
    for action in taken:
        log.append(action)
    saved = log.to_array()
    assert saved.dtype == stored and len(log) == 11
    restored = log.restored(saved)
    assert restored.dtype == space.dtype
    np.testing.assert_array_equal(restored, np.stack(taken))
    assert log.nbytes == 12 * taken[0].size * np.dtype(stored).itemsize


def test_acting_keeps_a_few_bytes_per_step_and_no_tensor() -> None:
    options = {"steps": 100_000, "evaluate_every": 100_000, "envs": 16}
    spec = tiny_rl(env="rl-pendulum", agent="sac-mlp", env_options=options, agent_options={"replay_ratio": 0.0})
    made = spec.create("env").make()
    trainer = OffPolicyTrainer(made, Learner(spec.create("agent").build(made, 0, torch.device("cpu"))), spec.run)
    trainer.begin()

    def act(steps: int) -> None:
        for _ in range(steps):
            trainer.advance()
        trainer.episodes.clear()  # at an evaluation

    act(20)  # the first steps are random, and fill the replay buffer
    gc.collect()
    tensors = sum(type(found) is torch.Tensor for found in gc.get_objects())
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    act(150)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / 2400 < 50, f"{grown / 2400:.1f} bytes per environment step"
    assert sum(type(found) is torch.Tensor for found in gc.get_objects()) <= tensors + 5
    assert len(trainer.actions[0]) == 170
