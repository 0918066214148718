"""Fixtures for the tests of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.config.spec import RunSpec
from plastibench.training.assembly import make_trainer
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.trainer import Trainer
from tests.support import environments  # noqa: F401 - registers environments


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """A function that starts an RL run and trains for some steps; it returns the trainer and the agent."""
    trainers: list[Trainer] = []

    def start(spec: RunSpec, steps: int = 160) -> tuple[OffPolicyTrainer, OffPolicyAgent]:
        env = spec.create("env").make()
        agent = spec.create("agent").build(env, spec.run.seed, torch.device("cpu"))
        trainer = make_trainer(spec, env, agent, folder=tmp_path)
        trainers.append(trainer)
        assert isinstance(trainer, OffPolicyTrainer)
        trainer.begin()
        while trainer.steps < steps:
            trainer.advance()
        return trainer, agent

    yield start
    for trainer in trainers:
        trainer.close()
