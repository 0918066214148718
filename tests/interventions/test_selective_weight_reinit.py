from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.interventions.selective_weight_reinit import SelectiveWeightReinit
from plastibench.nn.network import Network
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    constant,
    double,
    images,
    loss,
    method,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
    update,
)
from tests.support.references import array
from tests.support.rl import RL, rl_network

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
each_utility = pytest.mark.parametrize("utility", ["gradient", "magnitude"])
AT_SWITCH = {"interval": 0, "pruning": "proportional"}


def utility_of(utility: str, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return np.abs(weight * gradient) if utility == "gradient" else np.abs(weight)


def gradients_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: array(p.grad) for name, p in module.named_parameters()}


@each_utility
@pytest.mark.parametrize("name", NETWORKS)
def test_intervention_reinitializes_the_lowest_fraction_of_every_tensor(name, utility):
    network, batch = network_of(double(NETWORKS[name])), images(300).double()  # two chunks of unequal size
    batch["label"] = batch["label"].long()
    add_noise(network.module, 0.1)
    network.module.eval()
    loss(network.module, batch).backward()
    gradients = gradients_of(network.module)
    network.module.zero_grad(set_to_none=True)
    network.module.train()
    network._fresh = constant(double(NETWORKS[name]), 3.0)
    before = state(network.module)
    report = SelectiveWeightReinit(utility, factor=0.3, **AT_SWITCH).intervene(network, batch)
    total = 0
    for key, weight in network.module.named_parameters():
        old, redrawn = array(before[key]), array(weight) == 3.0
        assert redrawn.sum() in (math.floor(0.3 * old.size), math.ceil(0.3 * old.size))
        worth = utility_of(utility, old, gradients[key])
        if 0 < redrawn.sum() < redrawn.size:
            assert worth[redrawn].max() <= worth[~redrawn].min() + 1e-15
        np.testing.assert_array_equal(array(weight)[~redrawn], old[~redrawn])
        total += redrawn.sum()
    assert report.parameters == total > 0


@each_utility
def test_weights_below_the_threshold_are_reinitialized_every_interval(utility):
    """Use the weights after the step and the gradients before it, as in the authors' code."""
    builder = small_vit()
    network, acting = network_of(builder, lr=1e-3), SelectiveWeightReinit(utility, factor=0.4, interval=3)
    network._fresh = constant(builder, 3.0)
    add_noise(network.module, 0.05)
    for number in range(1, 7):
        batch = images(8, seed=number)
        twin = copy.deepcopy(network)
        update(network, acting, batch)
        update(twin, method("none"), batch)
        gradients = gradients_of(twin.module)
        for (key, weight), plain in zip(network.module.named_parameters(), twin.module.parameters(), strict=True):
            old = array(plain)
            worth = utility_of(utility, old, gradients[key])
            mask = worth <= 0.4 * worth.mean() if number % 3 == 0 else np.zeros(old.shape, bool)
            assert (np.abs(worth - 0.4 * worth.mean()) > 1e-9).mean() > 0.9
            np.testing.assert_array_equal(array(weight), np.where(mask, np.float32(3.0), old), err_msg=key)


def test_tensor_without_gradient_is_fully_reinitialized_and_frozen_tensor_kept():
    network = network_of(MLP, lr=1e-2)
    network._fresh = constant(MLP, 3.0)
    first, second, head = (network.module[place] for place in (1, 3, 5))
    with torch.no_grad():
        first.bias.fill_(-100.0)  # all units are dead
    head.weight.requires_grad_(False)
    before = state(network.module)
    update(network, SelectiveWeightReinit(interval=1), images())
    assert bool((first.weight == 3).all())
    assert not bool((second.bias == 3).all())
    assert torch.equal(head.weight, before["5.weight"])


def test_replacement_by_the_mean_of_the_initial_distribution():
    builder = small_vit()
    network, batch = network_of(builder, lr=1e-2), images()
    add_noise(network.module, 0.3)
    SelectiveWeightReinit("magnitude", "proportional", 1.0, "mean", interval=0).intervene(network, batch)
    for name, parameter in network.module.named_parameters():
        scale = "norm" in name and name.endswith("weight")
        assert bool((parameter == (1.0 if scale else 0.0)).all()), name


def test_what_is_left_of_a_whole_number_is_redrawn_by_chance():
    network, batch = network_of(MLP), images()
    network._fresh = constant(MLP, 3.0)
    acting, counts = SelectiveWeightReinit("magnitude", factor=0.07, **AT_SWITCH), []
    for _ in range(400):
        twin = copy.deepcopy(network.module)
        acting.intervene(network, batch)
        counts.append(int((network.module[5].bias == 3).sum()))  # of 10
        network.module.load_state_dict(twin.state_dict())
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.7, abs=4 * math.sqrt(0.7 * 0.3 / 400))


@each_utility
def test_only_moments_of_reinitialized_weights_are_reset(utility):
    network, batch = network_of(MLP, lr=1e-2), images()
    train(network, batch)
    before = {p: network.optimizer.state[p]["exp_avg"].clone() for p in network.module.parameters()}
    old = state(network.module)
    SelectiveWeightReinit(utility, factor=0.5, **AT_SWITCH).intervene(network, batch)
    for name, weight in network.module.named_parameters():
        mask = weight.detach() != old[name]
        moments = network.optimizer.state[weight]["exp_avg"]
        if weight.ndim > 1:  # fresh biases are zeros, as before
            assert bool((moments[mask] == 0).all()) and torch.equal(moments[~mask], before[weight][~mask])
            assert 0.4 < float(mask.float().mean()) <= 0.5


def test_parameter_with_unknown_initialization_is_kept():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(64, 10), nn.Parameter(torch.full((64,), 0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1) * self.scale)

    module = Scaled()
    network = Network(module, None, loss)
    before = state(module)
    SelectiveWeightReinit(factor=1.0, **AT_SWITCH).intervene(network, images())
    assert changed(before, module) == {"linear.weight", "linear.bias"}


@each_utility
@pytest.mark.parametrize(("name", "role"), RL)
def test_rl_agents(name, role, utility):
    network, batch = rl_network(name, role)
    found = torch.autograd.grad(network.loss(network.module, batch), list(network.module.parameters()))
    gradients = {key: array(g) for (key, _), g in zip(network.module.named_parameters(), found, strict=True)}
    network._fresh = constant(network._fresh, 3.0)
    before = state(network.module)
    SelectiveWeightReinit(utility, factor=0.25, **AT_SWITCH).intervene(network, batch)
    for key, weight in network.module.named_parameters():
        utilities = utility_of(utility, array(before[key]), gradients[key])
        mask = array(weight) == 3.0
        assert mask.sum() in (math.floor(0.25 * mask.size), math.ceil(0.25 * mask.size))
        if 0 < mask.sum() < mask.size:
            assert utilities[mask].max() <= utilities[~mask].min() * (1 + 1e-4) + 1e-12


def test_registered_names_use_the_settings_of_the_authors():
    usual, magnitude = method("selective-weight-reinit"), method("selective-weight-reinit-magnitude")
    assert (usual.utility, usual.pruning, usual.factor, usual.interval) == ("gradient", "threshold", 5e-4, 128)
    assert (magnitude.utility, magnitude.factor, magnitude.replacement) == ("magnitude", 1e-3, "mean")
    with pytest.raises(UserError, match="at most 1"):
        build(SelectiveWeightReinit, {"pruning": "proportional", "factor": 2}, "selective-weight-reinit")


def test_unused_embedding_rows_are_kept():
    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(4, 3))

    module = build()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    network = Network(module, optimizer, lambda m, b: m(b).square().mean(), fresh=build)
    method = SelectiveWeightReinit(interval=1, factor=1e3)
    module(torch.tensor([[1], [2]])).square().mean().backward()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    method.after_update(network)
    assert torch.equal(module[0].weight, before["0.weight"]) and not torch.equal(module[2].weight, before["2.weight"])
