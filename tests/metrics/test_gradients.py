from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from plastibench.metrics import gradients as module
from plastibench.metrics.gradients import loss_gram, ntk, ntk_ranks, similarity, zero_gradients
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.ranks import feature_ranks, layer_ranks
from plastibench.metrics.spectra import count_for_fraction, effective_rank
from plastibench.metrics.weights import adam_update, spectral_norm, weight_metrics
from plastibench.nn.batch_outputs import output_matrix
from plastibench.nn.mean_gradient import mean_gradient
from plastibench.nn.network import Network
from tests.support.networks import double, drawn, images, network_of, small_resnet, small_vit, train
from tests.support.references import array


def rows_of(network: Network, batch: TensorDict, ntk: bool = False) -> np.ndarray:
    """Gradients of single samples by backward(). [k, P]."""
    network.module.eval()
    found = []
    for index in range(len(batch)):
        one = batch[index : index + 1]
        value = network.module(one["image"]).sum() if ntk else network.loss(network.module, one)
        grads = torch.autograd.grad(value, list(network.module.parameters()))
        found.append(np.concatenate([array(g).ravel() for g in grads]))
    return np.array(found)


def entropy_rank(matrix: np.ndarray) -> float:
    share = np.linalg.svd(matrix, compute_uv=False)
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize("memory", [2**28, 20_000])
def test_gradients_of_samples_agree_as_numpy_says(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._gram, "__defaults__", (memory,))  # all at once, or in blocks of one sample
    network, batch = network_of(double(small_vit())), images(9).double()
    batch["label"] = batch["label"].long()
    rows = rows_of(network, batch)
    gram = loss_gram(network, batch)
    np.testing.assert_allclose(gram.numpy(), rows @ rows.T, rtol=1e-9, atol=1e-12)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(9, 1)]
    found = similarity(gram)
    assert found["gradient-cosine"] == pytest.approx(pairs.mean(), rel=1e-9)
    assert found["gradient-conflict-ratio"] == (pairs < 0).mean()
    assert 0 < found["gradient-conflict-ratio"] < 1
    assert found["gradient-effective-rank"] == pytest.approx(entropy_rank(unit), rel=1e-6)
    kernel = rows_of(network, batch, ntk=True)
    np.testing.assert_allclose(ntk(network, batch, ["head"]).numpy(), kernel @ kernel.T, rtol=1e-9)


def test_ranks_of_the_tangent_kernel() -> None:
    network, batch = network_of(double(small_vit())), images(40).double()
    batch["label"] = batch["label"].long()
    batch["image"][20] = batch["image"][10]  # one direction fewer
    found = ntk_ranks(MetricInputs.of(network, batch)).overall
    kernel = rows_of(network, batch[:32], ntk=True)
    assert found["ntk-effective-rank"] == pytest.approx(entropy_rank(kernel), rel=1e-3)
    assert found["ntk-numerical-rank"] <= 31


def test_samples_without_a_gradient_agree_with_nothing() -> None:
    assert similarity(torch.zeros(3, 3, dtype=torch.float64)) == {}
    half = torch.tensor([[4.0, 0, 2], [0, 0, 0], [2, 0, 4]], dtype=torch.float64)
    assert similarity(half)["gradient-cosine"] == 0.5


def test_the_mean_gradient_and_its_zeros() -> None:
    builder = double(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)))
    network, batch = network_of(builder), images(300).double()
    batch["label"] = batch["label"].long()
    with torch.no_grad():
        network.module[1].bias[:2] = -1e3  # dead: 65 entries each are 0, and 10 of each column that reads them
        network.module[3].weight[:, 4] = 1e-13  # tiny, and not 0
    found = mean_gradient(network, batch)
    network.loss(network.module, batch).backward()
    for name, parameter in network.module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)
    values = np.concatenate([array(g).ravel() for g in found.values()])
    shown = zero_gradients(MetricInputs.of(network, batch))
    total = 6 * 65 + 10 * 7
    assert shown.overall["zero-gradient-ratio"] == (2 * 65 + 2 * 10) / total == (values == 0).mean()
    assert shown.overall["tiny-gradient-ratio"] == pytest.approx((2 * 65 + 2 * 10 + 65) / total)
    assert shown.layers["1"] == {
        "zero-gradient-ratio": pytest.approx(2 / 6),
        "tiny-gradient-ratio": pytest.approx(3 / 6),
    }


def test_outputs_are_those_of_the_output_modules_side_by_side() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.advantage = nn.Linear(4, 1), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.advantage(x.flatten(1)) + self.value(x.flatten(1))

    network, batch = network_of(Two), images(5, (1, 2, 2), classes=3)
    x = batch["image"].flatten(1)
    found = output_matrix(network, network.module, batch, ["value", "advantage"])
    torch.testing.assert_close(found, torch.cat([network.module.value(x), network.module.advantage(x)], 1))


# Ranks and weights ------------------------------------------------------------------------------------------------


def test_ranks_of_a_diagonal_matrix_by_hand() -> None:
    matrix = torch.zeros(100, 5)
    matrix[range(4), range(4)] = torch.tensor([10.0, 5.0, 1.0, 0.05])
    found = feature_ranks(matrix)
    assert found["stable-rank"] == pytest.approx((100 + 25 + 1 + 0.0025) / 100)
    assert found["approximate-rank"] == 2  # 125 of 126.0025 are 99.2 %
    assert found["feature-rank"] == 3  # σ/10: 1, 0.5, 0.1 and 0.005
    assert found["numerical-rank"] == 4 == int(torch.linalg.matrix_rank(matrix))
    assert set(feature_ranks(torch.zeros(9, 4)).values()) == {0.0}
    assert (
        count_for_fraction(torch.tensor([1.0, 98.0, 1.0]), 0.99) == 2 and count_for_fraction(torch.zeros(3), 0.99) == 0
    )


def test_ranks_of_a_random_matrix_equal_numpys() -> None:
    matrix = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) + 2
    singular = np.linalg.svd(array(matrix), compute_uv=False)
    squares = singular**2
    found = feature_ranks(matrix)
    assert found["stable-rank"] == pytest.approx(np.linalg.norm(array(matrix)) ** 2 / singular[0] ** 2)
    assert found["approximate-rank"] == 1 + (np.cumsum(squares) / squares.sum() < 0.99).sum()
    assert effective_rank(torch.from_numpy(singular)) == pytest.approx(entropy_rank(array(matrix)))


def test_the_rank_of_what_a_layer_hands_on() -> None:
    network, batch = (
        network_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 10))),
        images(),
    )
    found = layer_ranks(MetricInputs.of(network, batch))
    with torch.no_grad():
        h = array(network.module[:3](batch["image"]))
    assert found.layers["1"]["layer-rank-fraction"] == pytest.approx(entropy_rank(h) / 9, rel=1e-5)
    assert found.overall["layer-rank-fraction"] == found.layers["1"]["layer-rank-fraction"]


def test_weights_equal_numpys() -> None:
    network, batch = network_of(small_vit(), lr=1e-2), images()
    initial = {name: p.detach().clone() for name, p in network.module.named_parameters()}
    train(network, batch)
    found = weight_metrics(MetricInputs.of(network, batch, initial=initial))
    now, start = (
        np.concatenate([array(p).ravel() for p in ps]) for ps in (network.module.parameters(), initial.values())
    )
    assert found.overall["weight-rms"] == pytest.approx(np.sqrt((now**2).mean()))
    cosine = now @ start / np.linalg.norm(now) / np.linalg.norm(start)
    assert found.overall["weight-cosine"] == pytest.approx(cosine, rel=1e-9) and cosine < 0.9999
    fc1 = network.module.blocks[0].mlp.fc1
    assert found.layers["blocks.0.mlp.fc1"]["spectral-norm"] == pytest.approx(np.linalg.norm(array(fc1.weight), 2))
    norms = [
        np.linalg.norm(array(p).reshape(len(p), -1), 2)
        for n, p in network.module.named_parameters()
        if p.ndim in (2, 4)
    ]
    assert found.overall["spectral-norm"] == pytest.approx(max(norms))
    scales = np.concatenate([array(m.weight) for m in network.module.modules() if isinstance(m, nn.LayerNorm)])
    for name, value in (("mean", scales.mean()), ("std", scales.std()), ("min", scales.min())):
        assert found.overall[f"layernorm-scale-{name}"] == pytest.approx(value, rel=1e-6)
    assert "weight-cosine" not in weight_metrics(MetricInputs.of(network, batch)).overall


def test_the_spectral_norm_of_a_convolution_is_that_of_its_matrix() -> None:
    weight = drawn(small_resnet).conv1.weight
    assert spectral_norm(weight) == pytest.approx(np.linalg.norm(array(weight).reshape(len(weight), -1), 2))


def test_the_effective_learning_rate_is_by_how_much_adam_moved_the_weights() -> None:
    network, batch = network_of(double(small_vit()), lr=1e-2), images().double()
    batch["label"] = batch["label"].long()
    assert "effective-learning-rate" not in weight_metrics(MetricInputs.of(network, batch)).overall
    train(network, batch, 4)
    before = {name: p.detach().clone() for name, p in network.module.named_parameters()}
    train(network, batch, 1)
    moved, size = 0.0, 0.0
    for name, p in network.module.named_parameters():
        update = adam_update(network.optimizer, p)
        torch.testing.assert_close(before[name] - p.detach(), update, rtol=1e-6, atol=1e-12)
        moved, size = moved + float(update.square().sum()), size + float(p.detach().square().sum())
    found = weight_metrics(MetricInputs.of(network, batch)).overall["effective-learning-rate"]
    assert found == pytest.approx((moved / size) ** 0.5)


def test_other_optimizers_have_no_such_figure_and_amsgrad_has_its_own() -> None:
    def trained(make: Callable[[Any], torch.optim.Optimizer]) -> Network:
        network, batch = network_of(small_vit()), images()
        network.optimizer = make(network.module.parameters())
        train(network, batch, 4)
        network.optimizer.param_groups[0]["lr"] = 1e-2
        return network

    nadam = trained(lambda parameters: torch.optim.NAdam(parameters))
    assert "effective-learning-rate" not in weight_metrics(MetricInputs.of(nadam, images())).overall
    network, batch = trained(lambda parameters: torch.optim.Adam(parameters, lr=1.0, amsgrad=True)), images()
    before = [p.detach().clone() for p in network.module.parameters()]
    train(network, batch, 1)
    for old, new in zip(before, network.module.parameters(), strict=True):
        torch.testing.assert_close((old - new).double(), adam_update(network.optimizer, new), rtol=1e-3, atol=1e-6)
