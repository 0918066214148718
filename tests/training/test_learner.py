"""A learner works without an environment, a trainer or files."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from plastibench.config.errors import RunError
from plastibench.interventions.attach import create
from plastibench.training.learner import Learner
from tests.support.rl import make_agent, transitions


def make_learner(intervention: str = "none", **options: Any) -> Learner:
    return Learner(make_agent("sac-mlp", "rl-pendulum"), lambda: create(intervention), **options)


def test_learner_updates_and_intervenes_on_given_batches() -> None:
    learner = make_learner("reset", every=3, until=6)
    due = []
    for seed in range(9):
        learner.learn(transitions("rl-pendulum", seed=seed))
        if learner.due():
            due.append(learner.updates)
            batch = learner.agent.add_targets(transitions("rl-pendulum", 32, seed=100 + seed))
            before = {role: network.module.state_dict() for role, network in learner.networks.items()}
            before = {role: {name: p.clone() for name, p in state.items()} for role, state in before.items()}
            assert set(learner.intervene(batch)) == {"critic", "actor"}
            for role, network in learner.networks.items():
                assert any(not torch.equal(p, before[role][name]) for name, p in network.module.named_parameters())
    assert due == [3, 6] and learner.updates == 9 and learner.intervention_seconds > 0
    assert {"loss", "entropy"} <= set(learner.pop_averages()) and learner.pop_averages() == {}


def test_learner_without_a_period_intervenes_at_task_boundaries() -> None:
    learner = make_learner(until=1)
    assert learner.due_at_boundary() and not learner.due()
    for seed in range(2):
        learner.learn(transitions("rl-pendulum", seed=seed))
    assert not learner.due_at_boundary() and not learner.due()


def test_learner_modifies_only_the_given_roles() -> None:
    learner = make_learner("reset", roles=("actor",))
    batch = learner.agent.add_targets(transitions("rl-pendulum", 32))
    assert set(learner.intervene(batch)) == {"actor"}
    critic = dict(learner.networks["critic"].module.named_parameters())
    assert all(torch.equal(p, critic[name]) for name, p in learner.initial["critic"].items())


def test_restored_learner_continues_bit_identically() -> None:
    one, other = make_learner("shrink-perturb"), make_learner("shrink-perturb")
    for seed in range(3):
        one.learn(transitions("rl-pendulum", seed=seed))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for learner in (one, other):
        learner.learn(transitions("rl-pendulum", seed=3))
        noise = torch.Generator().manual_seed(0)
        learner.intervene(learner.agent.add_targets(transitions("rl-pendulum", seed=4), noise))
    assert one.updates == other.updates == 4
    for role, network in one.networks.items():
        weights = other.networks[role].module.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in network.module.state_dict().items())


def test_non_finite_averages_raise() -> None:
    learner = make_learner()
    batch = transitions("rl-pendulum")
    batch["reward"].fill_(torch.nan)
    learner.learn(batch)
    with pytest.raises(RunError, match=r"became nan before update 1; try a smaller --agent\.lr"):
        learner.pop_averages()
