from __future__ import annotations

import numpy as np
import pytest

from tests.support.networks import (
    agent_builder,
    changed,
    constant,
    images,
    method,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import make_agent

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.mark.parametrize("source", ["initial", "fresh"])
@each_network
def test_every_update_adds_the_other_weights(builder, source):
    network = network_of(builder, lr=1e-2)
    initial = state(network.module)
    network._fresh = constant(builder, 3.0)
    acting = method("soft-shrink-perturb", keep=0.9, noise=0.2, source=source)
    acting.prepare(network)
    train(network, images())
    expected = {key: array(p) for key, p in network.module.named_parameters()}
    buffers = {key: value.clone() for key, value in network.module.named_buffers()}
    moments = len(network.optimizer.state)
    for _ in range(2):
        acting.after_update(network)
        for key, parameter in network.module.named_parameters():
            other = array(initial[key]) if source == "initial" else np.full(parameter.shape, 3.0)
            expected[key] = 0.9 * expected[key] + 0.2 * other
            np.testing.assert_allclose(array(parameter), expected[key], rtol=1e-5, atol=1e-6)
    assert all(bool((value == buffers[key]).all()) for key, value in network.module.named_buffers())
    assert len(network.optimizer.state) == moments


def test_many_small_steps_converge_to_the_initial_weights():
    """A million default updates keep 1/e of the learned change, so steps this small must survive rounding."""
    network = network_of(MLP)
    initial = array(network.module[1].weight)
    acting = method("soft-shrink-perturb")
    acting.prepare(network)
    network.module[1].weight.data.add_(0.5)
    for _ in range(2000):
        acting.after_update(network)
    away = array(network.module[1].weight) - initial
    np.testing.assert_allclose(away.mean(), 0.5 * (1 - 1e-6) ** 2000, rtol=3e-4)
    assert away.mean() < 0.49945


def test_fresh_weights_differ_at_every_update():
    network = network_of(MLP)
    acting = method("soft-shrink-perturb", keep=0.0, noise=1.0, source="fresh")
    acting.prepare(network)
    acting.after_update(network)
    first = state(network.module)
    acting.after_update(network)
    assert changed(first, network.module) == set(first)


def test_critic_returns_to_its_initial_weights():
    network = make_agent().networks["critic"]
    acting = method("soft-shrink-perturb", keep=0.0, noise=1.0)
    acting.prepare(network)
    before = state(network.module)
    for parameter in network.module.parameters():
        parameter.data.add_(1.0)
    acting.after_update(network)
    assert not changed(before, network.module)
