from __future__ import annotations

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("options", [{}, {"reduction": "mean"}, {"vectors": False}, {"norms": True}], ids=str)
@pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())
def test_term_compares_sorted_entries_and_pulls_each_to_its_rank(builder, options):
    network = network_of(double(builder))
    initial = {key: array(value) for key, value in state(network.module).items()}
    acting = method("wasserstein", strength=0.3, **options)
    acting.prepare(network)
    with torch.no_grad():
        for parameter in add_noise(network.module).parameters():  # equal entries would have equal ranks
            parameter.add_(1e-6 * torch.linspace(0, 1, parameter.numel(), dtype=torch.float64).view_as(parameter))
    term = acting.penalty(network, images(2))
    term.backward()
    expected = 0.0
    for key, parameter in network.module.named_parameters():
        normalises = any(part in key for part in ("norm", "bn", "downsample.1"))
        if (normalises and not options.get("norms")) or (parameter.ndim == 1 and not options.get("vectors", True)):
            assert parameter.grad is None
            continue
        values = array(parameter).ravel()
        ranks = np.argsort(np.argsort(values))
        distance = values - np.sort(initial[key].ravel())[ranks]
        divisor = values.size if options.get("reduction") == "mean" else 1
        expected += 0.3 * (distance**2).sum() / divisor
        np.testing.assert_allclose(array(parameter.grad).ravel(), 0.6 * distance / divisor, rtol=1e-9, atol=1e-12)
    assert term.item() == pytest.approx(expected, rel=1e-12)


def test_permuted_entries_have_zero_distance():
    network = network_of(MLP)
    wasserstein, l2_init = method("wasserstein", strength=1.0), method("l2-init", strength=1.0)
    for acting in (wasserstein, l2_init):
        acting.prepare(network)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the same function with permuted hidden units
        network.module[1].weight.copy_(network.module[1].weight[order])
        network.module[1].bias.copy_(network.module[1].bias[order])
        network.module[3].weight.copy_(network.module[3].weight[:, order])
    assert wasserstein.penalty(network, images(2)).item() == 0
    assert l2_init.penalty(network, images(2)).item() > 0.1


def test_term_is_scaled_by_the_interval():
    network = network_of(MLP)
    often, seldom = method("wasserstein"), method("wasserstein", every=3)
    for acting in (often, seldom):
        acting.prepare(network)
    add_noise(network.module)
    terms = [seldom.penalty(network, images(2)) for _ in range(6)]
    assert [term is None for term in terms] == [True, True, False] * 2
    assert terms[2].item() == pytest.approx(3 * often.penalty(network, images(2)).item(), rel=1e-6)


def test_initial_weights_are_stored_by_prepare():
    network = network_of(MLP)
    acting = method("wasserstein")
    acting.prepare(network)
    add_noise(network.module)
    first = acting.penalty(network, images(2)).item()
    stored = acting.state_dict()["sorted"]
    assert all(bool((values.diff() >= 0).all()) for values in stored.values())
    add_noise(network.module, size=0.0)
    assert acting.penalty(network, images(2)).item() == first > 0
