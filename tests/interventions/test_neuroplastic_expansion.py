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
    method = NeuroplasticExpansion(sparsity=0.6, every=3, grow=0.8, prune=0.25)
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


@each_network
def test_the_largest_weights_are_the_first_connections(builder):
    network = network_of(builder)
    method, before = NeuroplasticExpansion(sparsity=0.7), state(network.module)
    method.prepare(network)
    for name, mask in method._masks.items():
        weights = before[name].abs()
        if bool((~mask).any()):
            assert weights[mask].min() >= weights[~mask].max()
            assert bool((before[name][mask] < 0).any()), name  # also negative ones
    random = NeuroplasticExpansion(sparsity=0.7, start="random")
    random.prepare(network_of(builder))
    assert any(not torch.equal(mask, random._masks[name]) for name, mask in method._masks.items())


class Source:
    """One matrix by the rule of torressliu/neuroplastic-expansion, in numpy: sorted indices instead of masks."""

    def __init__(self, weights: np.ndarray, count: int) -> None:
        self.mask = np.zeros(weights.size, dtype=bool)
        self.mask[np.argsort(-np.abs(weights.ravel()), kind="stable")[:count]] = True
        self.space = max(0.0, 0.5 * weights.size - count)  # with sparsity 0.5

    def change(self, weights: np.ndarray, gradient: np.ndarray, ended: bool) -> None:
        held = self.mask.sum()
        grown, pruned = int(self.space * 0.1), int(int(self.space * 0.1) * 0.4)
        if ended:
            grown = pruned = int(held * 0.2)
        order = np.argsort(-np.abs(weights.ravel()), kind="stable")
        keep = np.zeros_like(self.mask)
        keep[order[: held - pruned]] = True
        scores = np.where(keep, -1, np.abs(gradient.ravel()))
        self.mask = keep.copy()
        self.mask[np.argsort(-scores, kind="stable")[:grown]] = True


def test_grows_by_the_last_gradient_until_the_final_sparsity_and_then_exchanges_connections():
    network = network_of(MLP, lr=1e-3)
    sources, options = {}, {"sparsity": 0.5, "every": 2, "grow": 0.1, "final": 0.47}
    method, start = NeuroplasticExpansion(**options), state(network.module)
    method.prepare(network)
    for name, mask in method._masks.items():
        sources[name] = Source(array(start[name]), int(mask.sum()))
        assert np.array_equal(sources[name].mask, array(mask).ravel().astype(bool)), name
    missing = []
    for seed in range(30):
        batch = images(seed=seed)
        found = torch.autograd.grad(loss(network.module, batch), list(network.module.parameters()))
        gradients = {n: array(g) for (n, _), g in zip(network.module.named_parameters(), found, strict=True)}
        twin, plain = copy.deepcopy(network), NeuroplasticExpansion(**{**options, "every": 1000})
        plain.prepare(network_of(MLP, lr=1e-3))
        plain.load_state_dict(copy.deepcopy(method.state_dict()) | {"updates": 0})
        update(network, method, batch)
        update(twin, plain, batch)  # the same update without a change of connections
        missing.append(method.missing())
        if seed % 2 == 0:
            continue
        ended = missing[seed - 1] <= 0.47
        for name, source in sources.items():
            weights = array(twin.module.get_parameter(name))
            source.change(weights, gradients[name], ended)
            mask = array(method._masks[name]).astype(bool)
            assert np.array_equal(mask.ravel(), source.mask), (name, seed)
            new = mask & (weights == 0)
            assert not array(network.module.get_parameter(name))[new].any()
            for key in ("exp_avg", "exp_avg_sq"):
                assert not array(network.optimizer.state[network.module.get_parameter(name)][key])[new].any()
            np.testing.assert_array_equal(array(network.module.get_parameter(name))[mask & ~new], weights[mask & ~new])
    assert missing[0] == pytest.approx(0.5, abs=0.01) and missing[-1] <= 0.47
    ends = next(index for index, value in enumerate(missing) if value <= 0.47)
    assert len({round(value, 9) for value in missing[ends:]}) == 1  # as many are pruned as grow


def test_turnover_falls_by_a_cosine():
    method = NeuroplasticExpansion(turnover=0.2, horizon=1000)
    method._ended = 500
    for method._updates, expected in ((500, 0.2), (1000, 0.1), (1500, 0.0), (2000, 0.0)):
        assert method._turnover() == pytest.approx(expected, abs=1e-12)


def test_densities_follow_erdos_renyi_and_match_the_total():
    shapes = {"wide": (100, 300), "narrow": (10, 20), "filters": (16, 4, 3, 3)}
    found = erdos_renyi(shapes, 0.2)
    sizes = {name: np.prod(shape) for name, shape in shapes.items()}
    assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(0.2 * sum(sizes.values()))
    raw = {"wide": 400 / 30000, "narrow": 30 / 200, "filters": (16 + 4 + 3 + 3) / 576}
    assert found["narrow"] == 1.0
    assert found["wide"] / found["filters"] == pytest.approx(raw["wide"] / raw["filters"])
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
