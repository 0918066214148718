from __future__ import annotations

import pytest
import torch
from torch import nn

from plastibench.interventions.revive import Revive
from plastibench.nn.memory import (
    LiveBytes,
    MemoryPlan,
    evaluation_bytes,
    refit_plan,
    samples_within,
    training_bytes,
)
from tests.support.networks import agent_builder, changed, images, network_of, small_resnet, small_vit, state

KIB = 2**10


def test_bytes_in_use_are_counted():
    given = torch.zeros(256)  # 1 KiB
    with LiveBytes() as live:
        first = given + 1
        view = first[:10]
        second = first * 2
        assert (live.now, live.peak) == (2 * KIB, 2 * KIB)  # neither the argument nor the view
        del first
        assert live.now == 2 * KIB  # the view keeps it
        del view, second
        assert (live.now, live.peak) == (0, 2 * KIB)
        given.add_(1)
        assert live.now == 0


def test_sparse_tensors_are_allowed():
    with LiveBytes() as live:
        product = torch.sparse.mm(torch.eye(4).to_sparse(), torch.ones(4, 1))
    assert product.sum() == 4 and live.peak >= 16


def test_tensors_that_only_the_backward_pass_needs_are_counted():
    weight = torch.zeros(256, requires_grad=True)
    with LiveBytes() as live:
        total = weight.exp().exp().sum()
        assert live.now == 2 * KIB + 4
        torch.autograd.grad(total, weight)
        assert live.now == 4


def test_estimates_of_an_mlp_are_exact():
    def builder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    network = network_of(builder)
    assert evaluation_bytes(network, images(64)) == 4 * (100 + 100)  # at the ReLU
    kept = 100 + 10 + 10  # of the ReLU, the logits, their log-softmax; ReLU keeps its output only
    assert training_bytes(network, images(64)) == pytest.approx(4 * kept, abs=4 * 100)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("builder", [small_vit(), small_resnet, agent_builder("mlp", width=32)])
def test_an_estimate_from_few_samples_holds_for_many(builder, gradients):
    network, batch = network_of(builder), images(96)
    estimate = (training_bytes if gradients else evaluation_bytes)(network, batch)
    network.module.eval()
    with torch.set_grad_enabled(gradients), LiveBytes() as live:
        network.loss(network.module, batch)
    assert live.peak == pytest.approx(96 * estimate, rel=0.05)


def test_estimating_changes_nothing():
    network = network_of(small_vit(dropout=0.5))
    before, random = state(network.module), torch.get_rng_state()
    evaluation_bytes(network, images(8))
    training_bytes(network, images(3))
    assert not changed(before, network.module) and network.module.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in network.module.parameters())


@pytest.mark.parametrize(("limit", "expected"), [(1e9, 256), (2560, 256), (2559, 128), (25, 2), (1, 1)])
def test_samples_within_a_limit(limit, expected):
    assert samples_within(limit, 10.0) == expected


def test_a_batch_is_streamed_above_the_limit():
    network, batch = network_of(small_vit()), images(40)
    needed = 2 * 40 * evaluation_bytes(network, batch) / 2**30
    assert refit_plan(network, batch, None) == refit_plan(network, batch, 1.01 * needed) == MemoryPlan()
    plan = refit_plan(network, batch, 0.99 * needed)
    assert plan.streamed and plan.chunk == 4  # 2 · 4 samples are at most an eighth of 80
    assert refit_plan(network, images(640), 1e-9) == MemoryPlan(20, streamed=True)  # at most 32 passes


def test_scoring_in_smaller_chunks_finds_the_same_units(monkeypatch):
    sizes, found = [], []
    network, batch = network_of(small_vit(dim=32)), images(256)
    forward = type(network.module).forward
    monkeypatch.setattr(
        type(network.module), "forward", lambda self, x: sizes.append(len(x)) or forward(self, x), raising=True
    )
    for memory in (None, 0.002):
        network = network_of(small_vit(dim=32))
        sizes.clear()
        found.append((Revive(memory=memory).intervene(network, batch).units, max(sizes)))
    assert found[0][1] == 256 and found[1][1] <= 64
    assert all(torch.equal(mask, found[1][0][name]) for name, mask in found[0][0].items())
