"""Interventions in RL runs: networks, targets, schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.config import registry
from plastibench.config.errors import UserError
from tests.support.networks import parameters, same_tensors
from tests.support.rl import tiny_rl
from tests.support.runs import go

# These agents have no attention, or already have a norm before every nonlinearity.
UNSUPPORTED = {("rnr-attention", "sac-mlp"), ("layernorm", "sac-mlp")}


@pytest.mark.sample(8)
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
def test_interventions_change_every_network_and_no_target(
    started: Any, intervention: str, env: str, agent: str, options: dict[str, Any]
) -> None:
    trainer, rl_agent = started(tiny_rl(intervention, env, agent, agent_options=options), 80)
    before = {role: parameters(network.module) for role, network in rl_agent.networks.items()}
    targets = {role: parameters(target.module) for role, target in rl_agent.targets.items()}
    trainer.intervene()
    for role, network in rl_agent.networks.items():
        assert not same_tensors(before[role], parameters(network.module)), role
        assert all(torch.isfinite(p).all() for p in network.module.parameters())
    assert all(same_tensors(targets[role], parameters(target.module)) for role, target in rl_agent.targets.items())
    trainer.advance()  # training continues
    assert {report["role"] for report in trainer.reports} == set(rl_agent.networks)


@pytest.mark.sample(12)
@pytest.mark.parametrize("intervention", registry.interventions.all())
@pytest.mark.parametrize(
    ("env", "agent", "options"),
    [
        ("rl-pendulum", "sac-mlp", {"critics": 3, "layer_norm": True}),
        ("rl-minatar-breakout", "dqn-vit", {"dim": 8, "heads": 1, "depth": 1, "patch_size": 5}),
    ],
)
def test_every_intervention_supports_rl_agents_or_raises(
    started: Any, intervention: str, env: str, agent: str, options: dict[str, Any]
) -> None:
    spec = tiny_rl(intervention, env, agent, agent_options={**options, "target_every": 10**6})
    if (intervention, agent) in UNSUPPORTED:
        with pytest.raises(UserError):
            started(spec, 80)[0].intervene()
        return
    trainer, rl_agent = started(spec, 80)
    targets = {
        role: {name: p.detach().clone() for name, p in target.module.named_parameters()}
        for role, target in rl_agent.targets.items()
    }
    trainer.intervene()
    for role, target in rl_agent.targets.items():
        now = dict(target.module.named_parameters())
        assert list(now) == [name for name, _ in rl_agent.networks[role].module.named_parameters()]
        assert all(torch.equal(now[name], value) for name, value in targets[role].items() if name in now)
    trainer.advance()
    for network in rl_agent.networks.values():
        assert all(torch.isfinite(p).all() for p in network.module.parameters())
    assert {report["role"] for report in trainer.reports} == set(rl_agent.networks)


def test_only_networks_with_the_given_roles_are_modified(started: Any) -> None:
    trainer, rl_agent = started(tiny_rl("reset", "rl-pendulum", "sac-mlp", roles=("critic",)))
    actor, critic = (parameters(rl_agent.networks[role].module) for role in ("actor", "critic"))
    trainer.intervene()
    assert same_tensors(actor, parameters(rl_agent.networks["actor"].module))
    assert not same_tensors(critic, parameters(rl_agent.networks["critic"].module))


@pytest.mark.parametrize("intervention", ["weight-clipping", "parseval", "rnr"])
def test_target_policy_same_prepares_frozen_targets(started: Any, intervention: str) -> None:
    trainer, rl_agent = started(tiny_rl(intervention, agent_options={"target_policy": "same"}), steps=40)
    assert set(trainer.targets.interventions) == {"critic"}
    assert not any(p.requires_grad for p in rl_agent.targets["critic"].module.parameters())


@pytest.mark.parametrize("policy", ["keep", "copy", "same"])
def test_target_policy(started: Any, policy: str) -> None:
    trainer, rl_agent = started(tiny_rl("reset", agent_options={"target_policy": policy, "target_every": 10**6}))
    target, network = rl_agent.targets["critic"].module, rl_agent.networks["critic"].module
    before = parameters(target)
    trainer.intervene()
    trainer.targets.after_intervention(trainer.representative)
    after, copied = parameters(target), parameters(network)
    assert (same_tensors(before, after), same_tensors(after, copied)) == {
        "keep": (True, False),
        "copy": (False, True),
        "same": (False, False),
    }[policy]
    assert not any(p.requires_grad for p in target.parameters())


def test_rnr_preserves_values_better_than_reset(started: Any) -> None:
    change = {}
    for name in ("rnr", "reset"):
        trainer, rl_agent = started(
            tiny_rl(name, agent_options={"hidden": (64, 64), "lr": 3e-3}, representative=200), 240
        )
        batch = trainer.representative()
        before = rl_agent.value(batch["observation"], batch["action"])
        trainer.intervene()
        after = rl_agent.value(batch["observation"], batch["action"])
        change[name] = float((after - before).norm() / before.norm())
    assert change["rnr"] < 0.25 < 0.5 < change["reset"]
    assert trainer.reports[-1]["revived_fraction"] == 1.0


def test_runs_are_identical_until_the_first_intervention(tmp_path: Path) -> None:
    none, reset = (go(tiny_rl(name, every=80), tmp_path) for name in ("none", "reset"))
    assert none["returns"][:2] == reset["returns"][:2] and none["returns"] != reset["returns"]


def test_schedule_counts_updates_and_offline_updates_are_extra(tmp_path: Path) -> None:
    spec = tiny_rl("reset", agent_options={"replay_ratio": 1.0}, every=50, until=100, offline_updates=7)
    result = go(spec, tmp_path)
    # Offline updates count towards the schedule, but do not trigger interventions themselves.
    assert [report["update"] for report in result["interventions"]] == [50, 100]
    assert result["cost"]["updates"] == 200 + 2 * 7


def test_interventions_at_task_boundaries_are_evaluated(tmp_path: Path) -> None:
    spec = tiny_rl("reset", "rl-minatar-permuted", "dqn-cnn", env_options={"tasks": 3, "steps": 80})
    result = go(spec, tmp_path)
    assert [(event["task"], event["steps"]) for event in result["events"]] == [(1, 80), (2, 160)]
    assert [report["update"] for report in result["interventions"]] == [event["update"] for event in result["events"]]
    assert {point["task"] for point in result["returns"]} == {0, 1, 2}


def test_targets_include_the_changes_of_after_update(started: Any) -> None:
    options = {"target_every": 5, "lr": 1e-2, "replay_ratio": 1.0}
    trainer, rl_agent = started(tiny_rl("weight-clipping", agent_options=options), 80)
    assert trainer.learner.updates == 40  # the target has just been copied
    assert same_tensors(parameters(rl_agent.targets["critic"].module), parameters(rl_agent.networks["critic"].module))


def test_churn_excludes_interventions(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"tasks": 2, "steps": 80, "clear_replay": True}
    trainer, _ = started(tiny_rl("reset", "rl-minatar-permuted", "dqn-cnn", env_options=options), 80)
    assert trainer._churn is not None  # set by the evaluation at the end of the task
    seen = []
    monkeypatch.setattr(trainer, "_measure_churn", lambda *answers: seen.append(trainer.learner.updates))
    trainer.advance()
    assert len(trainer.reports) == 1 and trainer.steps == 84 and trainer.learner.updates > 20 and not seen
