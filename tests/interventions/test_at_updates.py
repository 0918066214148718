"""Methods that act at every update disturb nothing else and resume exactly."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch

from plastibench.config.registry import interventions
from plastibench.interventions.base import Report, overrides
from plastibench.nn.network import Network
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    method,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.rl import make_agent, transitions

METHODS = {  # options with a visible effect after a few updates
    "l2": {"strength": 0.1},
    "l2-decoupled": {"strength": 0.5},
    "l2-init": {"strength": 0.1},
    "l2-init-decoupled": {"strength": 0.5},
    "l2-init-norm": {"strength": 0.1},
    "wasserstein": {"strength": 0.1, "every": 2},
    "weight-clipping": {"kappa": 0.5},
    "parseval": {"strength": 0.1},
    "spectral-decoupling": {"strength": 1.0},
    "self-distillation": {"momentum": 0.5, "strength": 10.0},
    "soft-shrink-perturb": {"keep": 0.9, "noise": 0.05},
    "shrink-perturb-noise": {"sigma": 1e-3, "decay": 0.1},
    "noisy-updates": {"sigma": 1e-2},
    "selective-weight-reinit": {"interval": 2, "factor": 0.5},
    "selective-weight-reinit-magnitude": {"interval": 2, "factor": 0.5},
    "hare-tortoise": {"momentum": 0.5, "sync_every": 2},
    "ema": {"momentum": 0.5},
}
BUILDERS = {"vit": small_vit(), "mlp": agent_builder("mlp", width=8), "resnet": small_resnet}
each_method = pytest.mark.parametrize("name", METHODS)
each_network = pytest.mark.parametrize("kind", [*BUILDERS, "critic"])


def network_and_batch(kind: str, seed: int = 0) -> tuple[Network, object]:
    if kind in BUILDERS:
        return network_of(BUILDERS[kind], lr=1e-2, seed=seed), images(8)
    agent = make_agent()
    return agent.networks["critic"], agent.add_targets(transitions("rl-cartpole", 16))


def random_states() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@each_network
@each_method
def test_hooks_change_only_weights(name, kind):
    network, batch = network_and_batch(kind)
    module, acting = network.module, method(name, **METHODS[name])
    acting.prepare(network)
    train(network, batch, 2, acting)
    for index, child in enumerate(module.modules()):
        child.training = index % 3 > 0
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    modes, needed = [c.training for c in module.modules()], [p.requires_grad for p in module.parameters()]
    gradients = [p.grad for p in module.parameters()]
    identities = [(id(t), t.data_ptr(), t.dtype) for t in (*module.parameters(), *module.buffers())]
    attributes = {child: set(child.__dict__) for child in module.modules()}
    samples, randomness, before = batch.clone(), random_states(), state(module)

    for _ in range(2):
        term = acting.penalty(network, batch)
    assert not changed(before, module)
    assert all(bool((g == 0.5).all()) and p.grad is g for p, g in zip(module.parameters(), gradients, strict=True))
    if term is not None:
        assert term.shape == ()
        assert bool(torch.isfinite(term))
        assert term.requires_grad
    acting.before_update(network)
    assert not changed(before, module)
    acting.after_update(network)
    buffers = {buffer_name for buffer_name, _ in module.named_buffers()}
    assert name == "hare-tortoise" or not buffers & changed(before, module)
    assert acting.evaluated(network) is module or name == "ema"

    assert random_states() == randomness
    assert [(id(t), t.data_ptr(), t.dtype) for t in (*module.parameters(), *module.buffers())] == identities
    assert [c.training for c in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == needed
    assert {child: set(child.__dict__) for child in module.modules()} == attributes
    assert not any(c._forward_hooks or c._forward_pre_hooks or c._backward_hooks for c in module.modules())
    assert all(bool((batch[key] == samples[key]).all()) for key in batch.keys())  # noqa: SIM118 - a TensorDict
    assert torch.is_grad_enabled()


@pytest.mark.sample(16)
@each_network
@each_method
def test_each_method_changes_training_or_evaluation(name, kind):
    (plain, batch), (network, _) = network_and_batch(kind), network_and_batch(kind)
    acting = method(name, **METHODS[name])
    acting.prepare(network)
    train(plain, batch, 4)
    train(network, batch, 4, acting)
    differing = changed(state(plain.module), network.module)
    if name == "ema":
        assert not differing
        assert {key for key, _ in network.module.named_parameters()} <= changed(
            state(plain.module), acting.evaluated(network)
        )
    else:
        assert differing
        assert all(torch.isfinite(p).all() for p in network.module.parameters())


@each_method
def test_intervene_changes_nothing(name):
    network, batch = network_and_batch("mlp")
    acting = method(name, **METHODS[name])
    acting.prepare(network)
    train(network, batch, 3, acting)
    before = state(network.module)
    report = acting.intervene(network, batch)
    assert isinstance(report, Report)
    assert report.parameters == 0
    assert not changed(before, network.module)


@pytest.mark.sample(8)
@pytest.mark.parametrize("kind", ["vit", "resnet", "critic"])
@each_method
def test_resume_is_bit_identical(name, kind, tmp_path):
    network, batch = network_and_batch(kind)
    acting = method(name, **METHODS[name])
    acting.prepare(network)
    train(network, batch, 3, acting)
    torch.save(acting.state_dict(), tmp_path / "state.pt")
    saved = copy.deepcopy((network.module.state_dict(), network.optimizer.state_dict(), network.generator.get_state()))
    train(network, batch, 3, acting)

    resumed, _ = network_and_batch(kind, seed=1)
    again = method(name, **METHODS[name])
    again.prepare(resumed)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.save(again.state_dict(), tmp_path / "state.pt")  # a checkpoint right after the start
    again = method(name, **METHODS[name])
    again.prepare(resumed)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.module.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.generator.set_state(saved[2])
    train(resumed, batch, 3, again)
    assert not changed(state(network.module), resumed.module)
    assert not changed(state(acting.evaluated(network)), again.evaluated(resumed))


@each_method
def test_only_the_network_generator_is_used(name):
    outcomes = []
    for attempt in range(2):
        network, batch = network_and_batch("vit")
        torch.manual_seed(attempt)
        acting = method(name, **METHODS[name])
        acting.prepare(network)
        torch.rand(attempt)
        outcomes.append(state(train(network, batch, 3, acting).module))
    assert all(torch.equal(outcomes[0][key], outcomes[1][key]) for key in outcomes[0])


def test_all_registered_names_are_tested():
    classes = {interventions[name].load() for name in METHODS}
    assert sorted(METHODS) == sorted(name for name, entry in interventions.all().items() if entry.load() in classes)
    for name in METHODS:
        acting = method(name)
        assert any(overrides(acting, hook) for hook in ("penalty", "before_update", "after_update"))
