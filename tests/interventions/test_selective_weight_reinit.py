from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.interventions.selective_weight_reinit import SelectiveWeightReinit
from plastibench.options import build
from plastibench.registry import interventions
from tests.helpers import (
    agent_builder,
    array,
    changed,
    constant,
    double,
    images,
    jiggle,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.interventions.rl import RL, rl_network

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
each_utility = pytest.mark.parametrize("utility", ["gradient", "magnitude"])


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.weight for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def least_useful(weight: np.ndarray, gradient: np.ndarray | None, share: float) -> np.ndarray:
    utility = np.abs(weight if gradient is None else weight * gradient).ravel()
    mask = np.zeros(utility.size, bool)
    mask[np.argsort(utility, kind="stable")[: math.floor(share * utility.size + 1e-9)]] = True
    return mask.reshape(weight.shape)


@each_utility
@pytest.mark.parametrize("name", NETWORKS)
def test_the_share_of_lowest_utility_is_redrawn_in_each_tensor(name, utility):
    network, batch = network_of(double(NETWORKS[name])), images(300).double()  # two pieces of unequal size
    batch["label"] = batch["label"].long()
    jiggle(network.module, 0.1)
    network.module.eval()
    loss(network.module, batch).backward()
    gradients = {key: array(weight.grad) for key, weight in weights(network.module).items()}
    network.module.zero_grad(set_to_none=True)
    network.module.train()
    network._fresh = constant(double(NETWORKS[name]), 3.0)
    before = state(network.module)
    report = SelectiveWeightReinit(utility, 0.3).intervene(network, batch)
    total = 0
    for key, weight in weights(network.module).items():
        old = array(before[f"{key}.weight"])
        mask = least_useful(old, gradients[key] if utility == "gradient" else None, 0.3)
        np.testing.assert_array_equal(array(weight), np.where(mask, 3.0, old))
        total += mask.sum()
    assert report.parameters == total > 0
    assert changed(before, network.module) == {f"{key}.weight" for key in gradients}


@each_utility
def test_the_moments_of_redrawn_weights_alone_are_forgotten(utility):
    network, batch = network_of(MLP, lr=1e-2), images()
    train(network, batch)
    before = {
        key: network.optimizer.state[weight]["exp_avg"].clone() for key, weight in weights(network.module).items()
    }
    old = state(network.module)
    SelectiveWeightReinit(utility, 0.5).intervene(network, batch)
    for key, weight in weights(network.module).items():
        mask = weight.detach() != old[f"{key}.weight"]
        moments = network.optimizer.state[weight]["exp_avg"]
        assert bool((moments[mask] == 0).all()) and torch.equal(moments[~mask], before[key][~mask])
        assert 0.4 < float(mask.float().mean()) <= 0.5


@pytest.mark.parametrize(
    ("name", "utility"),
    [("selective-weight-reinit", "gradient"), ("selective-weight-reinit-magnitude", "magnitude")],
)
def test_both_utilities_have_a_name(name, utility):
    entry = interventions[name]
    assert build(entry.load(), entry.defaults, name).utility == utility


@each_utility
@pytest.mark.parametrize(("name", "role"), RL)
def test_agents_lose_single_weights_too(name, role, utility):
    network, batch = rl_network(name, role)
    found = torch.autograd.grad(network.loss(network.module, batch), list(network.module.parameters()))
    gradients = {key: array(g) for (key, _), g in zip(network.module.named_parameters(), found, strict=True)}
    network._fresh = constant(network._fresh, 3.0)
    before = state(network.module)
    SelectiveWeightReinit(utility, 0.25).intervene(network, batch)
    for key, weight in weights(network.module).items():
        old, gradient = array(before[f"{key}.weight"]), gradients[f"{key}.weight"]
        utilities = np.abs(old * gradient) if utility == "gradient" else np.abs(old)
        mask = array(weight) == 3.0
        assert mask.sum() == math.floor(0.25 * mask.size)
        assert utilities[mask].max() <= utilities[~mask].min() * (1 + 1e-4) + 1e-12
