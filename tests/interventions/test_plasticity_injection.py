from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plastibench.agents.classifier import Classifier
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.plasticity_injection import PlasticityInjection
from plastibench.metrics.plasticity import plasticity_report
from plastibench.nn.branches import Branches
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.training.learner import Learner
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    logits,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import drift, make_agent, outputs, tiny_rl, transitions
from tests.support.runs import Stopped, assert_same_run, crash_at, go

MLP = agent_builder("mlp", width=8)
VIT = small_vit(depth=3)
BUILDERS = {"vit": VIT, "hnt": small_vit(variant="hnt", depth=3), "mlp": MLP, "resnet": small_resnet}
# (network, part, k) -> stages of the tail, and the parameters before it
TAILS = {
    ("vit", "tail", 1): ["blocks.2", "norm", "head"],
    ("vit", "tail", 2): ["blocks.1", "norm", "head"],
    ("vit", "head", 1): ["head"],
    ("hnt", "tail", 1): ["blocks.2", "norm", "head"],
    ("mlp", "tail", 1): ["3"],
    ("mlp", "tail", 2): ["1"],
    ("mlp", "head", 1): ["5"],
    ("resnet", "tail", 1): ["layer4.1", "fc"],
    ("resnet", "tail", 3): ["layer3.1", "layer4", "fc"],
    ("resnet", "head", 1): ["fc"],
}
each_tail = pytest.mark.parametrize(("name", "part", "k"), TAILS, ids=str)


def injected(name: str, part: str = "tail", k: int = 1, **options: Any) -> tuple[Network, PlasticityInjection, Any]:
    network, batch = network_of(BUILDERS[name], lr=1e-2), images()
    method = PlasticityInjection(part, k, **options)
    method.prepare(network)
    train(network, batch)
    method.intervene(network, batch)
    return network, method, batch


def branches_of(module: nn.Module) -> dict[str, Branches]:
    return {name: child for name, child in module.named_modules() if isinstance(child, Branches)}


def in_branch(module: nn.Module, number: int) -> dict[str, Tensor]:
    """Return the parameters of one branch in all stages."""
    return {
        f"{name}.{inner}": p.detach().clone()
        for name, child in branches_of(module).items()
        for inner, p in child.branches[number].named_parameters()
    }


# Injection --------------------------------------------------------------------------------------------------------


@each_tail
def test_injection_preserves_outputs(name: str, part: str, k: int) -> None:
    network, batch = network_of(BUILDERS[name], lr=1e-2), images()
    method = PlasticityInjection(part, k)
    method.prepare(network)
    train(network, batch)
    expected, before = logits(network.module, batch), network.module
    report = method.intervene(network, batch)
    torch.testing.assert_close(logits(network.module, batch), expected, rtol=1e-6, atol=1e-6)
    assert network.module is before and list(branches_of(network.module)) == TAILS[name, part, k]
    new = in_branch(network.module, 1)
    assert report.parameters == sum(p.numel() for p in new.values()) > 0
    frozen = {n: p for n, p in network.module.named_parameters() if not p.requires_grad}
    assert len(frozen) == 2 * len(new)


@each_tail
def test_only_the_new_branch_and_earlier_layers_are_trained(name: str, part: str, k: int) -> None:
    network, _, batch = injected(name, part, k)
    old, new, start = (in_branch(network.module, number) for number in range(3))
    assert new.keys() == start.keys() and all(torch.equal(new[key], start[key]) for key in new)
    others = {n: p.detach().clone() for n, p in network.module.named_parameters() if ".branches." not in n}
    train(network, batch)
    assert all(torch.equal(p, in_branch(network.module, 0)[key]) for key, p in old.items())
    assert all(torch.equal(p, in_branch(network.module, 2)[key]) for key, p in start.items())
    assert not any(torch.equal(p, in_branch(network.module, 1)[key]) for key, p in new.items())
    parameters = dict(network.module.named_parameters())
    assert others or (name, k) == ("mlp", 2)
    assert not any(torch.equal(p, parameters[key]) for key, p in others.items())


def test_optimizer_owns_exactly_the_trained_parameters_in_module_order() -> None:
    network, _, batch = injected("vit")
    optimizer, parameters = network.optimizer, dict(network.module.named_parameters())
    trained = [p for p in parameters.values() if p.requires_grad]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in trained]
    kept = {id(p) for p in optimizer.state}
    assert kept == {id(p) for n, p in parameters.items() if ".branches." not in n}
    train(network, batch, 1)
    assert {id(p) for p in optimizer.state} == {id(p) for p in trained}


def test_frozen_weights_have_no_gradient_and_no_weight_decay() -> None:
    network, batch = network_of(MLP), images()
    network.optimizer = torch.optim.AdamW(network.module.parameters(), lr=0.1, weight_decay=1.0)
    method = PlasticityInjection()
    method.prepare(network)
    network.loss(network.module, batch).backward()
    method.intervene(network, batch)
    assert all((p.grad is None) == (not p.requires_grad or ".branches." in n) for n, p in
               network.module.named_parameters())  # fmt: skip
    before = in_branch(network.module, 0)
    network.optimizer.step()
    assert all(torch.equal(p, in_branch(network.module, 0)[key]) for key, p in before.items())


def test_output_is_the_frozen_tail_plus_the_change_of_the_new_branch() -> None:
    network, _, batch = injected("mlp")
    train(network, batch)
    module = network.module
    h = np.maximum(array(batch["image"]).reshape(16, 64) @ array(module[1].weight).T + array(module[1].bias), 0)

    def tail(number: int) -> np.ndarray:
        first, _, last = module[3].branches[number]
        hidden = np.maximum(h @ array(first.weight).T + array(first.bias), 0)
        return hidden @ array(last.weight).T + array(last.bias)

    np.testing.assert_allclose(array(logits(module, batch)), tail(0) + tail(1) - tail(2), atol=1e-5)


def test_gradients_flow_through_all_branches() -> None:
    network, _, batch = injected("mlp", "head")
    train(network, batch)
    heads = [head.weight.detach() for head in network.module[5].branches]
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in (args[0], output):
            tensor.retain_grad()
            seen.append(tensor)

    handle = network.module[5].register_forward_hook(keep)
    network.loss(network.module, batch).backward()
    handle.remove()
    expected = seen[1].grad @ (heads[0] + heads[1] - heads[2])
    torch.testing.assert_close(seen[0].grad, expected)


def test_new_branch_uses_the_initialization_of_the_network() -> None:
    network, _, _ = injected("vit")
    new = network.module.blocks[2].branches[1]
    assert float(new.mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert (new.mlp.fc1.bias == 0).all() and (new.norm1.weight == 1).all()
    assert not torch.equal(new.mlp.fc1.weight, network.module.blocks[2].branches[0].mlp.fc1.weight)


@pytest.mark.parametrize("name", BUILDERS)
def test_number_of_injections_is_limited(name: str) -> None:
    network, method, batch = injected(name, times=2)
    train(network, batch)
    for count in (5, 5):
        expected, before = logits(network.module, batch), in_branch(network.module, 1)
        train_before = [id(p) for p in network.module.parameters()]
        report = method.intervene(network, batch)
        torch.testing.assert_close(logits(network.module, batch), expected, rtol=1e-6, atol=1e-6)
        assert {len(b.branches) for b in branches_of(network.module).values()} == {count}
        assert (report.parameters > 0) == ([id(p) for p in network.module.parameters()] != train_before)
        train(network, batch)
        assert all(torch.equal(p, in_branch(network.module, 1)[key]) for key, p in before.items())
    last = in_branch(network.module, 3)
    train(network, batch, 1)
    assert not any(torch.equal(p, in_branch(network.module, 3)[key]) for key, p in last.items())


# Metrics and other methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_builder", [True, False])
@pytest.mark.parametrize("name", ["vit", "mlp"])
def test_branches_of_a_fresh_network_cancel(name: str, with_builder: bool) -> None:
    network, batch = network_of(BUILDERS[name], lr=1e-2, fresh=with_builder), images()
    method = PlasticityInjection()
    method.intervene(network, batch)
    train(network, batch)
    fresh, other = network.fresh(), network.fresh()
    assert state(fresh).keys() == state(network.module).keys()
    drawn = [[p for p in in_branch(module, 0).values() if p.ndim > 1] for module in (fresh, other)]
    assert not any(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    new, start, old = in_branch(fresh, 1), in_branch(fresh, 2), in_branch(fresh, 0)
    assert all(torch.equal(new[key], start[key]) for key in new)
    assert not all(torch.equal(new[key], old[key]) for key in new)
    if with_builder:
        build(interventions["reset"].load(), {}, "reset").intervene(network, batch)
        new, start = in_branch(network.module, 1), in_branch(network.module, 2)
        assert all(torch.equal(new[key], start[key]) for key in new)


@pytest.mark.parametrize("name", ["vit", "mlp", "resnet"])
def test_metrics_and_unit_level_methods_skip_frozen_units(name: str) -> None:
    network, _, batch = injected(name)
    train(network, batch)
    units = trace(network, batch)
    assert [unit.name for unit in units if unit.output] == list(network.outputs) and len(network.outputs) == 3
    frozen = {unit.name for unit in units if not unit.trained}
    found = plasticity_report(network, batch)
    assert {n for n, figures in found.layers.items() if "dormant-ratio" in figures} == {
        unit.name for unit in units if unit.trained and not unit.output
    }
    assert np.isfinite(list(found.overall.values())).all()
    for other, options in (("redo", {"tau": 1.0}), ("rnr", {})):
        entry = interventions[other]
        report = build(entry.load(), {**entry.defaults, **options}, other).intervene(network, batch)
        assert report.units and not frozen & set(report.units)
        assert torch.isfinite(logits(network.module, batch)).all()


def test_revive_keeps_frozen_weights() -> None:
    network, _, batch = injected("vit")
    train(network, batch)
    before = state(network.module)
    build(interventions["regrama"].load(), interventions["regrama"].defaults, "regrama").intervene(network, batch)
    touched = changed(before, network.module)
    assert touched and not {n for n, p in network.module.named_parameters() if not p.requires_grad} & touched


class Skips(nn.Module):
    """Add the input of the tail to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential(nn.Linear(64, 10), nn.Linear(10, 10))
        self.last = nn.Linear(10, 10)

    def forward(self, image: Tensor) -> Tensor:
        h = self.layers[0](self.flatten(image))
        return self.last(h + self.layers[1](h))


class Mixes(nn.Module):
    """Mix samples between the stages of the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10))
        self.last = nn.Linear(10, 10)

    def forward(self, image: Tensor) -> Tensor:
        h = self.layers(image)
        return self.last(h - h.mean(0))


@pytest.mark.parametrize("builder", [Skips, Mixes])
def test_tail_that_is_not_a_chain_is_a_user_error_and_unchanged(builder: Callable[[], nn.Module]) -> None:
    network, batch = network_of(builder), images()
    before, expected = state(network.module), logits(network.module, batch)
    with pytest.raises(UserError, match="part=head"):
        PlasticityInjection().intervene(network, batch)
    assert not changed(before, network.module) and torch.equal(expected, logits(network.module, batch))
    PlasticityInjection("head").intervene(network, batch)
    torch.testing.assert_close(logits(network.module, batch), expected)


@pytest.mark.parametrize(("name", "k"), [("vit", 4), ("mlp", 3)])
def test_too_many_blocks_are_a_user_error(name: str, k: int) -> None:
    with pytest.raises(UserError, match=f"k is {k}"):
        PlasticityInjection(k=k).prepare(network_of(BUILDERS[name]))
    with pytest.raises(UserError, match="part=head"):
        PlasticityInjection().prepare(network_of(lambda: nn.Linear(3, 3)))


# RL agents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "env", "options", "tails"),
    [
        ("dqn-mlp", "rl-cartpole", {}, {"critic": ["body", "advantage"]}),
        ("dqn-mlp", "rl-cartpole", {"dueling": True, "atoms": 5}, {"critic": ["body", "advantage", "value"]}),
        ("sac-mlp", "rl-cartpole", {}, {"critic": ["heads.0", "heads.1"], "actor": ["body", "policy"]}),
        (
            "sac-mlp",
            "rl-pendulum",
            {"layer_norm": True},
            {"critic": ["heads.0", "heads.1"], "actor": ["body", "policy"]},
        ),
        ("dqn-cnn", "rl-minatar-breakout", {}, {"critic": ["body", "advantage"]}),
    ],
)
def test_what_follows_the_encoder_is_injected_in_networks_and_targets(
    name: str, env: str, options: dict[str, Any], tails: dict[str, list[str]]
) -> None:
    learner, batch = make_agent(name, env, target_every=1, tau=0.25, **options), transitions(env)
    for seed in range(2):
        learner.update(transitions(env, seed=seed))
    drift(learner)
    learner.add_targets(batch)
    inputs = (batch["observation"], batch["action"]) if env == "rl-pendulum" else (batch["observation"],)
    before = {
        role: outputs(net.module, *(inputs if "critic" in role else inputs[:1])) for role, net in everyone(learner)
    }
    for role, network in learner.networks.items():
        PlasticityInjection().intervene(network, batch)
        assert list(branches_of(network.module)) == tails[role]
    for role, network in everyone(learner):
        after = outputs(network.module, *(inputs if "critic" in role else inputs[:1]))
        np.testing.assert_allclose(after, before[role], atol=1e-6)
    own, its = learner.networks["critic"].module, learner.targets["critic"].module
    assert not any(p.requires_grad for p in its.parameters())
    assert state(own).keys() == state(its).keys()
    for number in (1, 2):
        pairs = zip(in_branch(own, number).values(), in_branch(its, number).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(
        torch.equal(a, b) for a, b in zip(in_branch(own, 0).values(), in_branch(its, 0).values(), strict=True)
    )
    frozen = in_branch(own, 0)
    for seed in range(2):
        learner.update(transitions(env, seed=seed))
    assert all(torch.equal(p, in_branch(own, 0)[key]) for key, p in frozen.items())
    assert not any(
        torch.equal(a, b) for a, b in zip(in_branch(own, 1).values(), in_branch(own, 2).values(), strict=True)
    )
    found = plasticity_report(learner.networks["critic"], learner.add_targets(batch))
    assert np.isfinite(list(found.overall.values())).all()


def everyone(learner: Any) -> list[tuple[str, Network]]:
    return [*learner.networks.items(), *((f"{role}-target", target) for role, target in learner.targets.items())]


def test_temperature_of_sac_keeps_its_group_and_state() -> None:
    learner, batch = make_agent("sac-mlp", "rl-pendulum"), transitions("rl-pendulum")
    for seed in range(3):
        learner.update(transitions("rl-pendulum", seed=seed))
    actor, temperature = learner.networks["actor"], learner._log_temperature
    kept = actor.optimizer.state[temperature]["exp_avg"].clone()
    PlasticityInjection().intervene(actor, learner.add_targets(batch))
    groups = actor.optimizer.param_groups
    assert [id(p) for p in groups[1]["params"]] == [id(temperature)]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in actor.module.parameters() if p.requires_grad]
    assert torch.equal(actor.optimizer.state[temperature]["exp_avg"], kept)
    was = float(temperature.detach())
    learner.update(transitions("rl-pendulum", seed=9))
    assert float(temperature.detach()) != was


# Exact resume -----------------------------------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("env", "agent_name", "options"),
    [
        ("rl-cartpole", "dqn-mlp", {"target_policy": "keep"}),
        ("rl-cartpole", "dqn-mlp", {"target_policy": "same", "dueling": True}),
        ("rl-pendulum", "sac-mlp", {"target_policy": "copy"}),
    ],
)
@pytest.mark.parametrize("crash", [37])
def test_resume_of_an_rl_agent_after_an_injection_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, agent_name: str, options: Any, crash: int
) -> None:
    spec = tiny_rl(
        "plasticity-injection+shrink-perturb",
        env,
        agent_name,
        agent_options={"replay_ratio": 0.4, **options},
        every=25,
        env_options={"steps": 160},
    )
    result = go(spec, tmp_path / "whole")
    assert [report["parameters"] > 0 for report in result["interventions"]].count(True) > 0
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
    final = torch.load(tmp_path / "part" / spec.id / "final.pt", weights_only=True)["networks"][0]
    assert any(".branches.2." in name for name in final)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "network", "every", "crash"),
    [
        ("plasticity-injection", "mlp", 3, 5),  # within the task of the injection
        ("plasticity-injection", "mlp", 3, 10),
        ("plasticity-injection", "vit-nano", 0, 5),
        ("crelu+normalize-and-project", "mlp", 0, 5),
    ],
)
def test_resume_of_a_classifier_after_a_rebuild_is_bit_identical(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, every: int, crash: int, network: str
) -> None:
    spec = tiny(name, agent=network, agent_options={"batch_size": 4, "lr": 0.01}, every=every)
    go(spec, tmp_path / "whole")
    crash_at(monkeypatch, crash)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "part", checkpoint_seconds=0)
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


def test_weight_distance_counts_new_parameters_from_their_injection(tiny: Any, tmp_path: Path) -> None:
    spec = tiny("plasticity-injection", agent="mlp", agent_options={"lr": 0.0})
    go(spec, tmp_path)
    with open(tmp_path / spec.id / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "plasticity-classifier/weight-distance"]
    assert len(rows) == 6 and {float(row["value"]) for row in rows} == {0.0}
    moved = tiny("plasticity-injection", agent="mlp", agent_options={"lr": 0.01})
    assert json.dumps(go(moved, tmp_path))
    with open(tmp_path / moved.id / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "plasticity-classifier/weight-distance"]
    assert all(float(row["value"]) > 0 and math.isfinite(float(row["value"])) for row in rows[1:])


def test_new_optimizer_owns_the_trained_parameters(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned: list[tuple[int, int]] = []
    original = Classifier.update

    def update(self: Classifier, batch: Any) -> None:
        original(self, batch)
        trained = [p for p in self.networks["classifier"].module.parameters() if p.requires_grad]
        groups = self.networks["classifier"].optimizer.param_groups
        owned.append((sum(len(group["params"]) for group in groups), len(trained)))

    monkeypatch.setattr(Classifier, "update", update)
    go(tiny("plasticity-injection", agent="mlp"), tmp_path)
    assert all(mine == trained for mine, trained in owned)
