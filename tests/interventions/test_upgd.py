from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from plastibench.interventions.upgd import UPGD
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    images,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    update,
)
from tests.support.references import array

NETWORKS = {"vit": small_vit(dropout=0.0), "mlp": agent_builder("mlp", width=8), "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def gradients(module, batch):
    names = [name for name, _ in module.named_parameters()]
    found = torch.autograd.grad(loss(module, batch), list(module.parameters()), allow_unused=True)
    return {name: array(g) for name, g in zip(names, found, strict=True) if g is not None}


@each_network
@pytest.mark.parametrize("correction", [None, "paper", "released"])
def test_steps_follow_the_formula(builder, correction):
    network, batch = network_of(builder, lr=1e-3), images()
    method = UPGD(rule="sgd", lr_factor=20, noise=0.0, decay=0.1, beta=0.7, correction=correction)
    method.prepare(network)
    network.module.eval()
    utility = {name: np.zeros(tuple(p.shape)) for name, p in network.module.named_parameters()}
    lr = 0.02
    for number in range(1, 4):
        before, found = state(network.module), gradients(network.module, batch)
        update(network, method, batch)
        for name, g in found.items():
            utility[name] = 0.7 * utility[name] - 0.3 * g * array(before[name])
        corrected = {name: utility[name] / (1 - 0.7**number) for name in found}
        largest = max(value.max() for value in (utility if correction == "released" else corrected).values())
        for name, parameter in network.module.named_parameters():
            if name in found:
                gate = 1 / (1 + np.exp(-corrected[name] / largest))
                expected = (1 - lr * 0.1) * array(before[name]) - lr * found[name] * (1 - gate)
                np.testing.assert_allclose(array(parameter), expected, rtol=2e-4, atol=2e-6)


def test_adam_rule_gates_the_step_of_the_optimizer():
    builder = NETWORKS["mlp"]
    network, plain, batch = network_of(builder, lr=1e-2), network_of(builder, lr=1e-2), images()
    method = UPGD(rule="adam", noise=0.0, beta=0.0)
    method.prepare(network)
    before, found = state(network.module), gradients(network.module, batch)
    update(network, method, batch)
    plain.module.zero_grad()
    loss(plain.module, batch).backward()
    plain.optimizer.step()
    utilities = {name: -found[name] * array(before[name]) for name in found}
    largest = max(value.max() for value in utilities.values())
    for name, parameter in network.module.named_parameters():
        gate = 1 / (1 + np.exp(-utilities[name] / largest))
        step = array(plain.module.get_parameter(name)) - array(before[name])
        np.testing.assert_allclose(array(parameter) - array(before[name]), step * (1 - gate), rtol=1e-3, atol=1e-8)


def test_useful_weights_move_least():
    network, batch = network_of(NETWORKS["mlp"], lr=1e-3), images()
    method = UPGD(rule="adam", noise=0.0)
    method.prepare(network)
    for _ in range(3):
        before = state(network.module)
        update(network, method, batch)
    utility = method._utility["3.weight"].flatten()
    moved = (network.module[3].weight.detach() - before["3.weight"]).abs().flatten()
    plain = moved / (1 - torch.sigmoid(utility / max(u.max() for u in method._utility.values())))
    assert float(moved[utility.argmax()] / plain[utility.argmax()]) < float(
        moved[utility.argmin()] / plain[utility.argmin()]
    )


@each_network
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_noise_has_the_right_size_skips_norms_and_keeps_random_state(builder, rule):
    def after(noise: float) -> dict:
        network = network_of(builder, lr=1e-3)
        add_noise(network.module)
        network.module.eval()
        method = UPGD(rule=rule, noise=noise, lr_factor=1.0, beta=0.0)
        method.prepare(network)
        update(network, method, images())
        return state(network.module)

    randomness = torch.get_rng_state()
    quiet, noisy = after(0.0), after(5.0)
    assert torch.equal(torch.get_rng_state(), randomness)
    for name, value in quiet.items():
        difference = (noisy[name] - value).double()
        if "norm" in name or "bn" in name or name in ("cls_token", "pos_embed") or "downsample.1" in name:
            assert not difference.any(), name
        elif value.numel() > 60 and value.is_floating_point():
            assert 0.2 * 5e-3 < float(difference.std()) < 0.8 * 5e-3, name  # gates are between 0.27 and 1, mostly 0.5


def test_resume_is_bit_identical():
    network = network_of(NETWORKS["mlp"], lr=1e-3)
    method = UPGD()
    method.prepare(network)
    for seed in range(3):
        update(network, method, images(seed=seed))
    twin, other = network_of(NETWORKS["mlp"], seed=3, lr=1e-3), UPGD()
    other.prepare(twin)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    twin.module.load_state_dict(network.module.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(network.optimizer.state_dict()))
    for seed in range(3, 6):
        update(network, method, images(seed=seed))
        update(twin, other, images(seed=seed))
    assert not changed(state(network.module), twin.module)


def test_loaded_state_is_a_copy():
    network, batch = network_of(agent_builder("mlp", width=8), lr=1e-2), images()
    first = UPGD()
    first.prepare(network)
    update(network, first, batch)
    saved = first.state_dict()
    second = UPGD()
    second.prepare(network)
    second.load_state_dict(saved)
    before = {name: value.clone() for name, value in saved["utility"].items()}
    update(network, second, batch)
    assert all(torch.equal(saved["utility"][name], value) for name, value in before.items())
