from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

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
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("reduction", "share"), [("batchmean", 1.0), ("mean", 0.1)])
@each_network
def test_term_is_the_divergence_from_the_teacher(builder, reduction, share, temperature):
    network, batch = network_of(double(builder)), images(6)
    batch["image"] = batch["image"].double()
    acting = method("self-distillation", strength=2.0, reduction=reduction, temperature=temperature)
    acting.prepare(network)
    teacher = copy.deepcopy(network.module)
    add_noise(network.module, size=0.1)
    theirs, ours = (softmax(array(logits(module, batch)) / temperature) for module in (teacher, network.module))
    divergence = (theirs * np.log(theirs / ours)).sum(1).mean()
    assert divergence > 1e-4
    term = acting.penalty(network, batch)
    assert term.item() == pytest.approx(2 * share * divergence, rel=1e-9)
    term.backward()
    head = network.module.get_classifier() if hasattr(network.module, "get_classifier") else network.module[5]
    expected = 2 * share * (ours - theirs).mean(0) / temperature  # gradient of the last bias
    np.testing.assert_allclose(array(head.bias.grad), expected, rtol=1e-9, atol=1e-12)


@each_network
def test_teacher_is_updated_and_gets_no_gradient(builder):
    network, batch = network_of(builder, lr=1e-2), images(6)
    acting = method("self-distillation", momentum=0.9)
    acting.prepare(network)
    teacher = acting._teacher.module_for(network)
    expected = {key: array(value) for key, value in state(network.module).items()}
    for _ in range(3):
        train(network, batch, 1, acting)
        for key, parameter in network.module.named_parameters():
            expected[key] = 0.9 * expected[key] + 0.1 * array(parameter)
            np.testing.assert_allclose(array(teacher.get_parameter(key)), expected[key], rtol=1e-5, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_teacher_starts_equal_to_the_network():
    network, batch = network_of(NETWORKS["vit"]), images(6)
    acting = method("self-distillation")
    acting.prepare(network)
    term = acting.penalty(network, batch)
    assert abs(term.item()) < 1e-6
    term.backward()
    assert all(float(p.grad.abs().max()) < 1e-6 for p in network.module.parameters())


@pytest.mark.parametrize(("distance", "squared"), [("auto", True), ("mse", True), ("kl", False)])
def test_values_of_a_critic_use_the_squared_error(distance, squared):
    agent = make_agent()
    network, batch = agent.networks["critic"], agent.add_targets(transitions("rl-cartpole", 16))
    acting = method("self-distillation", strength=0.5, distance=distance)
    acting.prepare(network)
    with torch.no_grad():
        theirs = array(network.module(batch["observation"]))
        add_noise(network.module)
        ours = array(network.module(batch["observation"]))
    divergence = (softmax(theirs) * np.log(softmax(theirs) / softmax(ours))).sum(1).mean()
    expected = ((ours - theirs) ** 2).mean() if squared else divergence
    assert acting.penalty(network, batch).item() == pytest.approx(0.5 * expected, rel=1e-4)
