from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from plastibench.interventions.neuroplastic_expansion import NeuroplasticExpansion, erdos_renyi
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
    update,
)
from tests.support.references import array

MLP = agent_builder("mlp", width=32)
NETWORKS = {"vit": small_vit(), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def density(module, masks) -> float:
    return sum(int((module.get_parameter(name) != 0).sum()) for name in masks) / sum(m.numel() for m in masks.values())


@each_network
def test_network_starts_sparse_stays_sparse_and_grows(builder):
    network = network_of(builder, lr=1e-3)
    method = NeuroplasticExpansion(sparsity=0.6, every=3, grow=0.2, prune=0.25)
    before = state(network.module)
    randomness = torch.get_rng_state()
    method.prepare(network)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert density(network.module, method._masks) == pytest.approx(0.4, abs=0.02)
    for name, mask in method._masks.items():
        assert torch.equal(network.module.get_parameter(name), torch.where(mask, before[name], 0.0))
    assert changed(before, network.module) <= set(method._masks)
    held = []
    for seed in range(7):
        update(network, method, images(8, seed=seed))
        held.append(sum(int(mask.sum()) for mask in method._masks.values()))
        for name, mask in method._masks.items():
            assert not network.module.get_parameter(name)[~mask].any()
            assert not network.module.get_parameter(name).grad[~mask].any() or seed in (2, 5)
    assert held[0] == held[1] < held[2] == held[4] < held[5]


def test_grows_where_gradients_are_largest_and_prunes_the_smallest_weights():
    network = network_of(MLP, lr=1e-3)
    method = NeuroplasticExpansion(sparsity=0.5, every=2, grow=0.1, prune=0.5)
    method.prepare(network)
    masks = {name: mask.clone() for name, mask in method._masks.items()}
    wanted = {name: np.zeros(tuple(mask.shape)) for name, mask in masks.items()}
    for seed in range(2):
        found = torch.autograd.grad(loss(network.module, images(seed=seed)), list(network.module.parameters()))
        for (name, _), gradient in zip(network.module.named_parameters(), found, strict=True):
            if name in wanted:
                wanted[name] += array(gradient)
        twin = copy.deepcopy(network)
        update(network, method, images(seed=seed))
    for name, mask in masks.items():
        old, free = mask.numpy(), int((~mask).sum())
        grown = int(0.1 * free)
        expected = set(np.argsort(-np.where(old, -1, np.abs(wanted[name])).ravel(), kind="stable")[:grown])
        new = method._masks[name].numpy()
        assert set(np.flatnonzero(new & ~old)) == expected
        gone = np.flatnonzero(old & ~new)
        assert len(gone) == int(0.5 * grown)
        weights = np.abs(array(twin.module.get_parameter(name))).ravel()  # one update (of at most 0.001) earlier
        kept = np.flatnonzero((old & new).ravel())
        assert weights[gone].max(initial=0) <= weights[kept].min() + 0.002
        assert not network.module.get_parameter(name).detach().numpy().ravel()[list(expected)].any()
        for key in ("exp_avg", "exp_avg_sq"):
            moments = network.optimizer.state[network.module.get_parameter(name)][key].numpy().ravel()
            assert not moments[list(expected)].any()


def test_densities_follow_erdos_renyi_and_match_the_total():
    shapes = {"wide": (100, 300), "narrow": (10, 20), "filters": (16, 4, 3, 3)}
    found = erdos_renyi(shapes, 0.2)
    sizes = {name: np.prod(shape) for name, shape in shapes.items()}
    assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(0.2 * sum(sizes.values()))
    raw = {"wide": 400 / 30000, "narrow": 30 / 200, "filters": (16 + 36) / 576}
    assert found["narrow"] == found["filters"] == 1.0 or found["narrow"] / found["filters"] == pytest.approx(
        raw["narrow"] / raw["filters"]
    )
    assert found["wide"] < 0.2
    loose = erdos_renyi({"a": (100, 100), "b": (100, 300)}, 0.02)
    assert loose["a"] / loose["b"] == pytest.approx((200 / 10000) / (400 / 30000))


def test_fresh_networks_are_sparse():
    network = network_of(MLP, lr=1e-3)
    method = NeuroplasticExpansion(sparsity=0.7)
    method.prepare(network)
    assert density(network.fresh(), method._masks) == pytest.approx(0.3, abs=0.02)


def test_resume_is_bit_identical():
    options = {"sparsity": 0.5, "every": 4, "grow": 0.2}
    network = network_of(MLP, lr=1e-2)
    method = NeuroplasticExpansion(**options)
    method.prepare(network)
    for seed in range(6):
        update(network, method, images(seed=seed))
    twin, other = network_of(MLP, seed=3, lr=1e-2), NeuroplasticExpansion(**options)
    other.prepare(twin)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    twin.module.load_state_dict(network.module.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(network.optimizer.state_dict()))
    for seed in range(6, 14):
        update(network, method, images(seed=seed))
        update(twin, other, images(seed=seed))
    assert not changed(state(network.module), twin.module)
    assert all(torch.equal(mask, other._masks[name]) for name, mask in method._masks.items())


def test_network_keeps_learning():
    network, batch = network_of(MLP, lr=1e-2), images(32)
    method = NeuroplasticExpansion(sparsity=0.8, every=10)
    method.prepare(network)
    start = loss(network.module, batch).item()
    for _ in range(40):
        update(network, method, batch)
    assert loss(network.module, batch).item() < 0.5 * start
    train(network, batch, 1)
