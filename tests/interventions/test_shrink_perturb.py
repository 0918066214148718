from __future__ import annotations

import numpy as np
import pytest
import torch

from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.shrink_perturb import ShrinkPerturb
from tests.support.networks import (
    agent_builder,
    changed,
    constant,
    images,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import RL, rl_network

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}


def registered(name: str) -> ShrinkPerturb:
    entry = interventions[name]
    return build(entry.load(), entry.defaults, name)


each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


@each_network
@pytest.mark.parametrize(("keep", "noise"), [(0.8, 0.2), (0.4, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_weights_follow_the_formula(builder, keep, noise):
    network, batch = network_of(builder), images()
    network._fresh = constant(builder, 3.0)
    before = state(network.module)
    report = ShrinkPerturb(keep, noise).intervene(network, batch)
    for name, parameter in network.module.named_parameters():
        np.testing.assert_allclose(array(parameter), keep * array(before[name]) + noise * 3, rtol=1e-6, atol=1e-7)
    for name, buffer in network.module.named_buffers():
        assert torch.equal(buffer, before[name])
    assert report.parameters == sum(p.numel() for p in network.module.parameters())
    assert report.units == {}


HEADS = {"vit": {"head"}, "hnt": {"head"}, "mlp": {"5"}, "resnet": {"fc"}}


@pytest.mark.parametrize("source", ["fresh", "initial"])
@pytest.mark.parametrize("name", NETWORKS)
def test_heads_are_reinitialized_and_the_rest_follows_the_formula(name, source):
    network, batch = network_of(NETWORKS[name], lr=1e-2), images()
    method = ShrinkPerturb(0.5, 0.25, source, heads="reinitialize")
    initial = state(network.module)
    method.prepare(network)
    train(network, batch)
    network._fresh = constant(NETWORKS[name], 3.0)
    before = state(network.module)
    report = method.intervene(network, batch)
    for key, parameter in network.module.named_parameters():
        other = np.full(parameter.shape, 3.0) if source == "fresh" else array(initial[key])
        head = key.rpartition(".")[0] in HEADS[name]
        expected = np.full(parameter.shape, 3.0) if head else 0.5 * array(before[key]) + 0.25 * other
        np.testing.assert_allclose(array(parameter), expected, rtol=1e-5, atol=1e-6)
    assert not network.optimizer.state
    assert set(report.units) == HEADS[name]
    assert all(mask.all() and len(mask) == 10 for mask in report.units.values())


@pytest.mark.parametrize(("name", "role"), RL)
@pytest.mark.parametrize(("method", "keep", "noise"), [("sr-spr", 0.8, 0.2), ("bbf", 0.5, 0.5)])
def test_heads_of_rl_agents_are_their_output_layers(method, keep, noise, name, role):
    network, batch = rl_network(name, role)
    network._fresh = constant(network._fresh, 3.0)
    before = state(network.module)
    registered(method).intervene(network, batch)
    for key, parameter in network.module.named_parameters():
        head = key.rpartition(".")[0] in network.outputs
        expected = np.full(parameter.shape, 3.0) if head else keep * array(before[key]) + noise * 3
        np.testing.assert_allclose(array(parameter), expected, rtol=1e-5, atol=1e-6)


@each_network
def test_initial_weights_are_stored_by_prepare(builder):
    network, batch = network_of(builder, lr=1e-2), images()
    initial = state(network.module)
    method = ShrinkPerturb(0.2, 0.8, "initial")
    method.prepare(network)
    for _ in range(2):  # also the second time
        train(network, batch)
        before = state(network.module)
        method.intervene(network, batch)
        for name, parameter in network.module.named_parameters():
            expected = 0.2 * array(before[name]) + 0.8 * array(initial[name])
            np.testing.assert_allclose(array(parameter), expected, rtol=1e-5, atol=1e-6)
        assert {name for name, _ in network.module.named_parameters()} <= changed(before, network.module)


def test_fresh_weights_differ_each_time():
    network, batch = network_of(MLP), images()
    method = ShrinkPerturb(0.0, 1.0)
    method.intervene(network, batch)
    first = state(network.module)
    method.intervene(network, batch)
    assert changed(first, network.module) == set(first)


@pytest.mark.parametrize(
    ("name", "keep", "noise", "source"),
    [
        ("shrink-perturb", 0.8, 0.2, "fresh"),
        ("shrink-perturb-keep80", 0.8, 0.2, "fresh"),
        ("shrink-perturb-keep20", 0.2, 0.8, "initial"),
    ],
)
def test_both_readings_of_alpha_are_registered(name, keep, noise, source):
    method = registered(name)
    network, batch = network_of(MLP, lr=1e-2), images()
    network._fresh = constant(MLP, 3.0)
    initial = state(network.module)
    method.prepare(network)
    train(network, batch)
    before = state(network.module)
    method.intervene(network, batch)
    for key, parameter in network.module.named_parameters():
        other = np.full(parameter.shape, 3.0) if source == "fresh" else array(initial[key])
        np.testing.assert_allclose(array(parameter), keep * array(before[key]) + noise * other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", ["fresh", "initial"])
def test_optimizer_state_is_reset(source):
    network, batch = network_of(MLP, lr=1e-2), images()
    method = ShrinkPerturb(source=source)
    method.prepare(network)
    train(network, batch)
    assert network.optimizer.state
    method.intervene(network, batch)
    assert not network.optimizer.state


@pytest.mark.parametrize("source", ["fresh", "initial"])
def test_resume_is_bit_identical(source, tmp_path):
    network, batch = network_of(MLP, lr=1e-2), images()
    method = ShrinkPerturb(0.5, 0.5, source)
    method.prepare(network)
    train(network, batch)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed = ShrinkPerturb(0.5, 0.5, source)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    before, random = state(network.module), network.generator.get_state()
    method.intervene(network, batch)
    expected = state(network.module)
    network.module.load_state_dict(before)
    network.generator.set_state(random)
    resumed.intervene(network, batch)
    assert not changed(expected, network.module)
    assert changed(before, network.module)


def test_training_does_not_change_the_stored_weights():
    network, batch = network_of(MLP, lr=1e-2), images()
    method = ShrinkPerturb(0.0, 1.0, "initial")
    initial = state(network.module)
    method.prepare(network)
    train(network, batch)
    method.intervene(network, batch)
    assert not changed(initial, network.module)
    train(network, batch)  # in place, on the tensors that the intervention wrote
    method.intervene(network, batch)
    assert not changed(initial, network.module)


def test_initial_values_of_added_parameters_are_their_first_values():
    network, batch = network_of(MLP, lr=1e-2), images()
    method = ShrinkPerturb(0.5, 0.5, "initial")
    method.prepare(network)
    initial = state(network.module)
    network.rebuild(lambda module: module.append(torch.nn.Linear(10, 10)))
    added = state(network.module)["6.weight"]
    method.intervene(network, batch)
    assert torch.equal(network.module[6].weight, added)
    assert torch.equal(network.module[1].weight, initial["1.weight"])
