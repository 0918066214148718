from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network
from tests.support.networks import (
    add_noise,
    agent_builder,
    double,
    images,
    method,
    network_of,
    small_resnet,
    small_vit,
    state,
)
from tests.support.references import array

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def pulled_names(module: nn.Module, norms: bool) -> list[str]:
    """Recognize normalization layers by the names that timm gives them."""
    spared = ("norm", "bn", "downsample.1")
    return [name for name, _ in module.named_parameters() if norms or not any(part in name for part in spared)]


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("name", "aim"), [("l2", 0.0), ("l2-init", 1.0), ("l2-init-norm", 1.0)])
@each_network
def test_term_and_gradient_follow_the_formula(builder, name, aim, norms):
    network = network_of(double(builder))
    initial = {key: array(value) for key, value in state(network.module).items()}
    acting = method(name, strength=0.7, norms=norms)
    acting.prepare(network)
    add_noise(network.module)
    pulled = pulled_names(network.module, norms)
    assert norms or builder is MLP or len(pulled) < len(list(network.module.parameters()))
    away = {key: array(p) - aim * initial[key] for key, p in network.module.named_parameters() if key in pulled}
    squared = sum((value**2).sum() for value in away.values())
    term = acting.penalty(network, images(2))
    norm = name == "l2-init-norm"
    assert term.item() == pytest.approx(0.7 * squared**0.5 if norm else 0.35 * squared, rel=1e-12)
    term.backward()
    for key, parameter in network.module.named_parameters():
        if key in pulled:
            expected = 0.7 * away[key] / (squared**0.5 if norm else 1.0)
            np.testing.assert_allclose(array(parameter.grad), expected, rtol=1e-9, atol=1e-12)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("name", ["l2-init", "l2-init-norm"])
def test_term_is_zero_at_the_start(name):
    network = network_of(small_vit())
    acting = method(name)
    acting.prepare(network)
    term = acting.penalty(network, images(2))
    assert term.item() == 0
    term.backward()
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in network.module.parameters())


@pytest.mark.parametrize(("name", "aim"), [("l2-decoupled", 0.0), ("l2-init-decoupled", 1.0)])
@each_network
def test_decoupled_pull_uses_the_learning_rate_of_each_group(builder, name, aim):
    network = network_of(double(builder))
    first, *others = network.module.parameters()
    unowned = others.pop()
    network.optimizer = torch.optim.SGD([{"params": [first], "lr": 0.25}, {"params": others, "lr": 0.5}])
    rates = {first: 0.25, unowned: 0.0}
    initial = {key: array(value) for key, value in state(network.module).items()}
    acting = method(name, strength=0.1, norms=True)
    acting.prepare(network)
    add_noise(network.module)
    before = {key: array(value) for key, value in state(network.module).items()}
    assert acting.penalty(network, images(2)) is None
    acting.after_update(network)
    for key, parameter in network.module.named_parameters():
        share = rates.get(parameter, 0.5) * 0.1
        np.testing.assert_allclose(
            array(parameter), before[key] - share * (before[key] - aim * initial[key]), rtol=1e-12, atol=1e-12
        )


def test_without_gradients_decoupled_is_adamws_decay_and_coupled_moves_by_the_learning_rate():
    """Compare both forms on weights with zero loss gradient."""

    def after(name: str, **adam: float) -> np.ndarray:
        module = nn.Linear(5, 4, bias=False).double()
        nn.init.constant_(module.weight, 0.5)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, **adam)
        network = Network(module, optimizer, lambda m, b: (m.weight * 0).sum())
        acting = method(name, **({"strength": 0.3} if name != "none" else {}))
        for _ in range(10):
            optimizer.zero_grad()
            loss, extra = network.loss(module, images(1)), acting.penalty(network, images(1))
            (loss if extra is None else loss + extra).backward()
            optimizer.step()
            acting.after_update(network)
        return array(module.weight)

    decayed = after("l2-decoupled", weight_decay=0.0)
    np.testing.assert_allclose(decayed, 0.5 * (1 - 0.01 * 0.3) ** 10, rtol=1e-12)
    np.testing.assert_allclose(decayed, after("none", weight_decay=0.3), rtol=1e-12)
    np.testing.assert_allclose(after("l2", weight_decay=0.0), 0.5 - 10 * 0.01, rtol=5e-3)


def test_frozen_parameters_are_kept():
    network = network_of(MLP, lr=0.1)
    network.module[1].weight.requires_grad_(False)
    acting = method("l2-decoupled", strength=1.0)
    acting.prepare(network)
    before = state(network.module)
    acting.after_update(network)
    assert torch.equal(network.module[1].weight, before["1.weight"])
    assert not torch.equal(network.module[3].weight, before["3.weight"])


def test_decoupled_pull_requires_an_optimizer():
    acting, network = method("l2-init-decoupled"), network_of(MLP)
    acting.prepare(network)
    with pytest.raises(UserError, match="no optimizer"):
        acting.after_update(network)


def test_new_parameters_of_a_rebuilt_network_are_pulled_to_their_first_values():
    network = network_of(MLP, lr=1e-2)
    acting = method("l2-init", strength=2.0)
    acting.prepare(network)

    def widen(module: nn.Module) -> None:
        module[5] = nn.Linear(8, 12)

    network.rebuild(widen)
    assert acting.penalty(network, images(2)).item() == 0
    first = copy.deepcopy(network.module[5])
    with torch.no_grad():
        network.module[5].weight.add_(0.5)
    assert acting.penalty(network, images(2)).item() == pytest.approx(12 * 8 * 0.25, rel=1e-5)
    assert torch.equal(acting.state_dict()["initial"]["5.weight"], first.weight)
