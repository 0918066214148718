from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.metrics import PLASTICITY, select
from plastibench.metrics.compute import compute_metrics
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import plasticity_report, rank_metrics
from plastibench.metrics.ranks import head_ranks
from plastibench.nn.network import Network
from tests.support.networks import images, network_of

COUNT = 300  # more than one piece of the pass over the batch


def loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    return F.cross_entropy(module(batch["x"]), batch["label"])


def batch_of(inputs: int, classes: int, count: int = COUNT) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, inputs, generator=generator)
    return TensorDict({"x": x, "label": torch.randint(classes, (count,), generator=generator)}, batch_size=[count])


@pytest.fixture
def mlp() -> Network:
    """6-8-9-4 with dead, faint, blind and ordinary units."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        module[0].bias[:2] = -100.0  # dead: never active, no gradient
        module[0].weight[2] *= 0.02  # faint: hardly active
        module[0].bias[2] *= 0.02
        module[2].weight[:, 3] *= 0.003  # blind: hardly any gradient
        module[4].weight[:, 5] *= 0.05  # low gradient
        module[2].bias[7] = -100.0
    return Network(module, None, loss)


def by_numpy(module: nn.Module, batch: TensorDict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """E|h_i| and E|∂L/∂z_i| of both hidden layers, with L the loss of one sample."""
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in module.parameters())
    x, label = batch["x"].numpy(), batch["label"].numpy()
    z1 = x @ w1.T + b1
    h1 = np.maximum(z1, 0)
    z2 = h1 @ w2.T + b2
    h2 = np.maximum(z2, 0)
    out = h2 @ w3.T + b3
    p = np.exp(out - out.max(1, keepdims=True))
    d_out = p / p.sum(1, keepdims=True) - np.eye(out.shape[1])[label]
    d_z2 = (d_out @ w3) * (z2 > 0)
    d_z1 = (d_z2 @ w2) * (z1 > 0)
    return {"0": (abs(h1).mean(0), abs(d_z1).mean(0)), "2": (abs(h2).mean(0), abs(d_z2).mean(0)), "features": (h2, h2)}


def test_ratios_of_dormant_units_equal_numpys(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    reference = by_numpy(mlp.module, batch)
    found = plasticity_report(mlp, batch)
    counts = np.zeros(3, int)
    for name, size in (("0", 8), ("2", 9)):
        activation, gradient = (values / values.mean() for values in reference[name])
        expected = np.array([(activation <= 0.1).sum(), (gradient <= 0.01).sum(), (gradient <= 0.1).sum()])
        ratios = [found.layers[name][k] for k in ("dormant-ratio", "gradient-dormant-ratio", "low-gradient-ratio")]
        np.testing.assert_allclose(ratios, expected / size)
        counts += expected
    assert len(set(counts.tolist())) == 3 and counts.min() > 1  # the three ratios are told apart here
    overall = [found.overall[k] for k in ("dormant-ratio", "gradient-dormant-ratio", "low-gradient-ratio")]
    np.testing.assert_allclose(overall, counts / 17)  # over units, not over layers; the outputs do not count


def test_ranks_are_those_of_what_the_head_receives(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    features = by_numpy(mlp.module, batch)["features"][0]
    share = np.linalg.svd(features, compute_uv=False)
    share = share / share.sum()
    positive = share[share > 0]
    found = plasticity_report(mlp, batch).overall
    assert found["effective-rank"] == pytest.approx(np.exp(-(positive * np.log(positive)).sum()), rel=1e-9)
    assert found["srank"] == 1 + int((np.cumsum(share) < 0.99).sum())


def test_weight_norms_and_distance_equal_numpys(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    initial = {name: p.detach() + 0.1 for name, p in mlp.module.named_parameters()}
    found = plasticity_report(mlp, batch, initial)
    now = np.concatenate([p.detach().numpy().ravel() for p in mlp.module.parameters()])
    start = now + 0.1
    assert found.overall["weight-norm"] == pytest.approx(np.linalg.norm(now), rel=1e-6)
    assert found.overall["weight-distance"] == pytest.approx(0.1 * len(now) ** 0.5 / np.linalg.norm(start), rel=1e-6)
    weight = mlp.module[2].weight.detach().numpy()
    assert found.layers["2"]["weight-norm"] == pytest.approx(np.linalg.norm(weight), rel=1e-6)
    assert "weight-norm" in found.layers["4"] and "dormant-ratio" not in found.layers["4"]
    assert "weight-distance" not in plasticity_report(mlp, batch).overall
    same = {name: p.detach().clone() for name, p in mlp.module.named_parameters()}
    assert plasticity_report(mlp, batch, same).overall["weight-distance"] == 0.0


def test_layernorm_gradients_are_signed_means_over_samples_and_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.Linear(3, 10), nn.LayerNorm(10)
            self.last, self.head = nn.LayerNorm(10), nn.Linear(10, 4)

        def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            first = self.norm(self.up(x.reshape(-1, 2, 3)))
            last = self.last(torch.tanh(first) + first)
            return first, last, self.head(last.mean(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.split(x)[2]

    torch.manual_seed(1)
    module, batch = Tokens(), batch_of(6, 4)
    found = plasticity_report(Network(module, None, loss), batch)
    first, last, logits = module.split(batch["x"])
    total = F.cross_entropy(logits, batch["label"], reduction="sum")
    for name, output in (("norm", first), ("last", last)):
        (gradient,) = torch.autograd.grad(total, output, retain_graph=True)  # [N, 2, 10]
        expected = gradient.double().numpy().reshape(-1, 10).mean(0)
        np.testing.assert_allclose(found.layernorm_gradients[name].numpy(), expected, rtol=1e-4, atol=1e-8)
    assert set(found.layernorm_gradients) == {"norm", "last"}
    assert found.overall["layernorm-gradient-spread"] == pytest.approx(float(np.std(expected)), rel=1e-4)


def test_a_network_without_layernorm_has_no_spread_of_their_gradients(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    assert "layernorm-gradient-spread" not in plasticity_report(mlp, batch).overall


def test_a_head_that_is_a_convolution_has_the_ranks_of_a_linear_one() -> None:
    class Pooled(nn.Module):
        def __init__(self, convolution: bool) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 8, 3)
            self.head = nn.Conv2d(8, 10, 1) if convolution else nn.Linear(8, 10)
            self.flat = not convolution

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).tanh().mean((2, 3), keepdim=True)
            return self.head(x.flatten(1) if self.flat else x).flatten(1)

    batch, networks = images(64), [network_of(lambda flag=flag: Pooled(flag)) for flag in (True, False)]
    networks[1].module.first.load_state_dict(networks[0].module.first.state_dict())
    found = [{**plasticity_report(n, batch).overall, **head_ranks(MetricInputs.of(n, batch)).overall} for n in networks]
    names = ("effective-rank", "srank", "stable-rank", "numerical-rank")
    assert [found[0][name] for name in names] == pytest.approx([found[1][name] for name in names], rel=1e-5)
    assert found[0]["numerical-rank"] == 8


def test_what_is_not_finite_has_no_ranks_and_raises_nothing(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    with torch.no_grad():
        mlp.module[0].weight[0, 0] = math.nan
    found = plasticity_report(mlp, batch).overall
    assert math.isnan(found["effective-rank"]) and math.isnan(found["srank"])
    more = compute_metrics(mlp, batch, select(["all"]), torch.Generator().manual_seed(0)).overall
    names = ("stable-rank", "layer-rank-fraction", "curvature-rank-proxy", "sam-sharpness", "ntk-effective-rank")
    assert all(math.isnan(more[name]) for name in names)


def test_a_frozen_layer_counts_nowhere_and_a_frozen_head_has_no_features(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    mlp.module[0].requires_grad_(False)
    found = plasticity_report(mlp, batch)
    groups = compute_metrics(mlp, batch, select(["activity", "ranks"]), torch.Generator())
    assert groups.overall["dormant-ratio-layer-mean"] == found.layers["2"]["dormant-ratio"]
    assert "0" not in groups.layers and "layer-rank-fraction" in groups.layers["2"]
    mlp.module[4].requires_grad_(False)
    assert "effective-rank" not in plasticity_report(mlp, batch).overall
    assert "stable-rank" not in compute_metrics(mlp, batch, select(["ranks"]), torch.Generator()).overall
    mlp.module.requires_grad_(False)
    with pytest.raises(UserError, match="all parameters of the network are frozen"):
        plasticity_report(mlp, batch)


def test_every_measured_metric_is_defined(mlp: Network) -> None:
    batch = batch_of(6, 4).double()
    batch["label"] = batch["label"].long()
    found = plasticity_report(mlp, batch, dict(mlp.module.named_parameters()))
    assert set(found.overall) | {"layernorm-gradient-spread"} == set(PLASTICITY)
    assert {name for values in found.layers.values() for name in values} <= set(PLASTICITY)


def test_measuring_leaves_weights_gradients_modes_and_random_states_as_they_were() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 4)
    )
    module[4].eval()
    module[0].weight.grad = torch.full_like(module[0].weight, 7.0)
    network = Network(module, torch.optim.AdamW(module.parameters()), loss)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [child.training for child in module.modules()]
    hooks = [len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()]
    random_state, generator_state = torch.get_rng_state(), network.generator.get_state()
    assert plasticity_report(network, batch_of(6, 4), state).overall["dormant-ratio"] >= 0
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert [child.training for child in module.modules()] == modes
    assert hooks == [len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()]
    assert bool((module[0].weight.grad == 7.0).all()) and module[5].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(network.generator.get_state(), generator_state)
    assert not network.optimizer.state


def test_dropout_does_not_reach_the_measurement() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.9), nn.Linear(8, 4)).train()
    network, batch = Network(module, None, loss), batch_of(6, 4)
    assert plasticity_report(network, batch).overall == plasticity_report(network, batch).overall


@pytest.mark.parametrize(
    ("make", "effective", "srank"),
    [
        (lambda: torch.eye(5), 5.0, 5),
        (lambda: torch.outer(torch.arange(1.0, 9.0), torch.ones(5)), 1.0, 1),
        (lambda: torch.diag(torch.tensor([98.0, 1.0, 1.0])), None, 2),  # 0.98, 0.99, 1: the second reaches it
        (lambda: torch.diag(torch.tensor([97.0, 1.5, 1.5])), None, 3),
        (lambda: torch.diag(torch.tensor([50.0, 50.0, 1e-9])), 2.0, 2),
    ],
)
def test_rank_metrics_by_hand(make: Callable[[], Tensor], effective: float | None, srank: int) -> None:
    found = rank_metrics(make())
    if effective is not None:
        assert found["effective-rank"] == pytest.approx(effective, rel=1e-6)
    assert found["srank"] == srank


def test_rank_metrics_neither_centre_nor_depend_on_the_scale() -> None:
    matrix = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 3
    singular = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    expected = {"effective-rank": np.exp(-(share * np.log(share)).sum()), "srank": 1 + (share.cumsum() < 0.99).sum()}
    assert rank_metrics(matrix) == pytest.approx(expected, rel=1e-6)
    assert rank_metrics(1e-6 * matrix) == pytest.approx(expected, rel=1e-6)


def test_dead_features_have_no_rank_beyond_their_size() -> None:
    found = rank_metrics(torch.zeros(20, 6))  # a network whose last layer is dead: the case these metrics are for
    assert found["effective-rank"] <= 1 and found["srank"] <= 1
