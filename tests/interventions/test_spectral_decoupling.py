from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network
from tests.support.networks import (
    add_noise,
    agent_builder,
    double,
    images,
    logits,
    method,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import make_agent, transitions

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(dropout=0.5), "mlp": MLP, "resnet": small_resnet}


@pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())
def test_term_is_the_mean_square_of_logits_without_dropout(builder):
    network, batch = train(network_of(builder, lr=1e-2), images(6)), images(6)
    network.module.train()
    before, randomness = state(network.module), torch.get_rng_state()
    term = method("spectral-decoupling", strength=0.3).penalty(network, batch)
    assert term.item() == pytest.approx(0.3 * (array(logits(network.module, batch)) ** 2).mean(), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(torch.equal(value, before[key]) for key, value in state(network.module).items())


def test_gradient_matches_finite_differences():
    network, batch = network_of(double(MLP)), images(6)
    batch["image"] = batch["image"].double()
    add_noise(network.module)
    acting = method("spectral-decoupling", strength=0.3)
    acting.penalty(network, batch).backward()
    outputs = array(logits(network.module, batch))
    expected = 0.3 * 2 * outputs.sum(0) / outputs.size  # gradient of the last bias
    np.testing.assert_allclose(array(network.module[5].bias.grad), expected, rtol=1e-9)
    weight, step = network.module[1].weight, 1e-6
    found = weight.grad[3, 7].item()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[3, 7] += sign * step
            ends.append(0.3 * (array(logits(network.module, batch)) ** 2).mean())
            weight[3, 7] -= sign * step
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"dueling": True}, {"atoms": 5}], ids=str)
def test_outputs_of_dqn_are_action_values(options):
    agent = make_agent(**options)
    network, batch = agent.networks["critic"], agent.add_targets(transitions("rl-cartpole", 16))
    with torch.no_grad():
        values = array(network.module(batch["observation"]))
    assert values.shape[:2] == (16, 2)
    term = method("spectral-decoupling", strength=2.0).penalty(network, batch)
    assert term.item() == pytest.approx(2 * (values**2).mean(), rel=1e-5)


@pytest.mark.parametrize("role", ["critic", "actor"])
def test_outputs_of_sac_are_values_and_policy_parameters(role):
    agent = make_agent("sac-mlp")  # discrete actions
    network, batch = agent.networks[role], agent.add_targets(transitions("rl-cartpole", 16))
    with torch.no_grad():
        values = array(network.module(batch["observation"]))
    assert values.shape == ((2, 16, 2) if role == "critic" else (16, 2))
    term = method("spectral-decoupling", strength=2.0).penalty(network, batch)
    assert term.item() == pytest.approx(2 * (values**2).mean(), rel=1e-5)
    term.backward()
    others = [n for other, n in agent.networks.items() if other != role]
    assert all(p.grad is None for other in others for p in other.module.parameters())


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: F.cross_entropy(m(b["image"]) + m(b["image"]), b["label"]),
        lambda m, b: F.cross_entropy(m[5](m[:5](b["image"])), b["label"]),
    ],
    ids=["twice", "in parts"],
)
def test_loss_must_call_the_module_exactly_once(loss):
    network = Network(MLP(), None, loss)
    with pytest.raises(UserError, match="must call the module once"):
        method("spectral-decoupling").penalty(network, images(2))
    assert not network.module._forward_hooks


def test_module_with_several_outputs_is_an_error():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    network = Network(Two(64, 10), None, lambda m, b: m(b["image"].flatten(1))[0].sum())
    with pytest.raises(UserError, match="found: tuple"):
        method("spectral-decoupling").penalty(network, images(2))
