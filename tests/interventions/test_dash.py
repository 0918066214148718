from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.interventions.dash import Dash
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    double,
    images,
    loss,
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
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def negative_gradients(module: nn.Module, parts: list, alpha: float) -> dict[str, np.ndarray]:
    """Compute G ← (1-α)G + α(-∇L) over parts of the batch."""
    averages = {name: np.zeros(p.shape) for name, p in module.named_parameters()}
    module.eval()
    for part in parts:
        module.zero_grad(set_to_none=True)
        loss(module, part).backward()
        for name, p in module.named_parameters():
            averages[name] = (1 - alpha) * averages[name] - alpha * array(p.grad)
    module.zero_grad(set_to_none=True)
    module.train()
    return averages


def shrunk(weight: np.ndarray, direction: np.ndarray, floor: float) -> np.ndarray:
    """Shrink row by row, kernel by kernel, and a bias as one vector."""
    result = weight.copy()
    index = np.ndindex(*{1: (), 2: weight.shape[:1], 4: weight.shape[:2]}[weight.ndim])
    for place in index:
        one, other = weight[place].ravel(), direction[place].ravel()
        lengths = np.linalg.norm(one) * np.linalg.norm(other)
        cosine = one @ other / lengths if lengths else 0.0
        result[place] = weight[place] * min(max(cosine, floor), 1.0)
    return result


@each_network
def test_rows_and_kernels_shrink_by_their_clipped_cosine(builder):
    network, batch = network_of(double(builder)), images(20).double()
    batch["label"] = batch["label"].long()
    add_noise(network.module, 0.1)
    before = state(network.module)
    parts = [batch[:8], batch[8:16], batch[16:]]
    directions = negative_gradients(network.module, parts, 0.3)
    report = Dash(alpha=0.3, floor=0.05, piece=8).intervene(network, batch)
    kinds = {n: isinstance(m, nn.Linear | nn.Conv2d) for n, m in network.module.named_modules()}
    touched = {n for n, _ in network.module.named_parameters() if kinds[n.rpartition(".")[0]]}
    for name in touched:
        expected = shrunk(array(before[name]), directions[name], 0.05)
        np.testing.assert_allclose(array(network.module.get_parameter(name)), expected, rtol=1e-7, atol=1e-12)
    assert changed(before, network.module) == touched
    assert report.parameters == sum(network.module.get_parameter(name).numel() for name in touched)
    factors = [figures["factor"] for figures in report.modules.values()]
    assert min(factors) >= 0.05 and max(factors) > 0.051  # not all at the floor


def test_weights_along_the_negative_gradient_are_kept_and_others_fall_to_the_floor():
    network, batch = network_of(double(MLP)), images(8).double()
    batch["label"] = batch["label"].long()
    direction = negative_gradients(network.module, [batch], 1.0)["5.weight"]
    with torch.no_grad():
        network.module[5].weight.zero_()
        network.module[5].bias.zero_()
    along = negative_gradients(network.module, [batch], 1.0)["5.weight"]
    assert not np.allclose(direction, along)
    with torch.no_grad():  # weights are tiny, so that the gradient is the one at 0
        network.module[5].weight.copy_(1e-9 * torch.from_numpy(along))
        network.module[5].weight[0] *= -1
    before = array(network.module[5].weight).copy()
    Dash(alpha=1.0, floor=0.25, piece=8).intervene(network, batch)
    np.testing.assert_allclose(array(network.module[5].weight)[1:], before[1:], rtol=1e-6)
    np.testing.assert_allclose(array(network.module[5].weight)[0], 0.25 * before[0], rtol=1e-6)


@each_network
def test_only_optimizer_state_of_shrunk_weights_is_reset(builder):
    network, batch = network_of(builder, lr=1e-2), images()
    train(network, batch)
    before = state(network.module)
    Dash().intervene(network, batch)
    shrunk_ones = changed(before, network.module)
    kept = {n for n, p in network.module.named_parameters() if p in network.optimizer.state}
    names = {n for n, m in network.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert kept == {n for n, _ in network.module.named_parameters() if n.rpartition(".")[0] not in names}
    assert kept.isdisjoint(shrunk_ones)


def test_parameter_outside_the_loss_shrinks_to_the_floor():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.flatten(1))

    network, batch = network_of(Spare), images()
    before = state(network.module)
    Dash(floor=0.5).intervene(network, batch)
    np.testing.assert_allclose(array(network.module.spare.weight), 0.5 * array(before["spare.weight"]), rtol=1e-6)


@pytest.mark.parametrize(("name", "role"), RL)
def test_rl_agents_use_their_own_loss(name, role):
    network, batch = rl_network(name, role)
    before = state(network.module)
    gradient = torch.autograd.grad(network.loss(network.module, batch), list(network.module.parameters()))
    directions = {n: -array(g) for (n, _), g in zip(network.module.named_parameters(), gradient, strict=True)}
    Dash(alpha=1.0, floor=0.1).intervene(network, batch)
    for key, parameter in network.module.named_parameters():
        expected = shrunk(array(before[key]), directions[key], 0.1)
        np.testing.assert_allclose(array(parameter), expected, rtol=1e-4, atol=1e-6)
