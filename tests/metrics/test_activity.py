from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

from plastibench.metrics.activation_sums import evenly_spaced
from plastibench.metrics.activity import attention, duplicates, unit_activity
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.nn.activations import for_each_activation
from plastibench.nn.attention import attention_entropies
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from tests.support.networks import add_noise, drawn, images, loss, network_of, small_vit
from tests.support.references import array


def batch_of(count: int = 300) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(count, 1, 1, 6, generator=generator), torch.randint(4, (count,), generator=generator)
    return TensorDict({"image": x, "label": label}, batch_size=[count])


@pytest.fixture
def mlp() -> Network:
    """6-8-9-4 with two dead units, two copies of a unit, one of them negated, and a constant unit."""
    module = drawn(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(True), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 4))
    )
    with torch.no_grad():
        module[1].bias[:2] = -100.0
        module[3].weight[4], module[3].bias[4] = module[3].weight[1], module[3].bias[1]
        module[3].weight[7], module[3].bias[7] = -module[3].weight[1], -module[3].bias[1]
        module[3].weight[5] = 0.0  # constant
    return Network(module, None, loss)


def test_unit_activity_equals_numpy(mlp: Network) -> None:
    batch = batch_of()
    w1, b1, w2, b2 = (array(p) for p in list(mlp.module.parameters())[:4])
    h1 = np.maximum(array(batch["image"]).reshape(-1, 6) @ w1.T + b1, 0)
    h2 = np.tanh(h1 @ w2.T + b2)
    found = unit_activity(MetricInputs.of(mlp, batch))
    assert found.layers["1"]["dead-unit-ratio"] == 2 / 8 and found.layers["3"]["dead-unit-ratio"] == 0
    both = np.concatenate([(h1 > 0).mean(0), (h2 > 0).mean(0)])
    assert found.overall["fau"] == pytest.approx(both.mean())
    assert found.layers["3"]["fau"] == pytest.approx((h2 > 0).mean())
    assert found.overall["zero-activation-ratio"] == pytest.approx((h1 == 0).sum() / (h1.size + h2.size))
    assert found.overall["dead-unit-ratio"] == pytest.approx(2 / 17)
    assert found.layers["3"]["duplicate-ratio"] == pytest.approx(2 / 9)  # of units 1, 4 and 7, two are counted
    with np.errstate(invalid="ignore"):
        alike = np.abs(np.nan_to_num(np.corrcoef(h1.T))) > 0.95
    assert found.layers["1"]["duplicate-ratio"] == np.triu(alike, 1).any(1).mean()
    fractions = [(abs(h).mean(0) <= 0.1 * abs(h).mean()).mean() for h in (h1, h2)]
    assert found.overall["dormant-ratio-layer-mean"] == pytest.approx(np.mean(fractions))
    assert fractions[0] != fractions[1] and "attention-entropy" not in found.overall


def test_duplicates_equal_numpys_correlation() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 6))
    rows[:, 3] = rows[:, 0] + 0.1 * rows[:, 3] + 50
    rows[:, 5] = -rows[:, 2] + 0.4 * rows[:, 5]  # correlation about 0.93: below the threshold
    tensor = torch.from_numpy(rows)
    found = duplicates(tensor.T @ tensor, tensor.sum(0), 200)
    assert found.tolist() == np.triu(np.abs(np.corrcoef(rows.T)) > 0.95, 1).any(1).tolist()
    assert found.tolist() == [True, False, False, False, False, False]


def test_rows_are_samples_and_positions_even_if_a_reshape_precedes_the_activation() -> None:
    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 3, 3), nn.Linear(3 * 16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(F.max_pool2d(self.conv(x), 1).flatten(1)))

    network, batch = network_of(Reshaping), images(5, (1, 6, 6), classes=4)
    seen = []
    units = [unit for unit in trace(network, batch) if not unit.output]
    for_each_activation(network, batch, units, lambda unit, h: seen.append(h.clone()))
    expected = F.relu(network.module.conv(batch["image"])).movedim(1, -1).reshape(-1, 3)  # [80, 3]
    (rows,) = seen
    assert rows.shape == (80, 3)
    torch.testing.assert_close(rows.sort(0).values, expected.sort(0).values)  # in any order


def test_rows_are_evenly_spaced() -> None:
    rows = torch.arange(10.0)[:, None]
    assert evenly_spaced(rows, 4).flatten().tolist() == [0, 3, 6, 9]
    assert evenly_spaced(rows, 10) is rows


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_attention_entropies_equal_those_of_the_module(variant: str) -> None:
    network, batch = network_of(small_vit(variant=variant)), images(70)
    add_noise(network.module, 1.0)
    found = attention_entropies(network, batch)
    assert set(found) == {"blocks.0.attn", "blocks.1.attn"}
    network.module.eval()
    for name, entropies in found.items():
        attention = network.module.get_submodule(name)
        kept = []
        attention.fused_attn = False  # computes the attention matrix explicitly
        handle = attention.attn_drop.register_forward_hook(lambda _, args, out, kept=kept: kept.append(out))
        with torch.no_grad():
            network.module(batch["image"])
        handle.remove()
        weights = array(kept[0])  # [B, h, T, T]
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean((0, 2)) / np.log(weights.shape[-1])
        np.testing.assert_allclose(entropies.numpy(), entropy, rtol=1e-5)
        assert 0 < entropy.min() < entropy.max() < 1


def test_heads_that_attend_to_one_token_are_collapsed() -> None:
    network, batch = network_of(small_vit()), images(8)
    with torch.no_grad():
        qkv = network.module.blocks[0].attn.qkv
        qkv.weight[:8] *= 2e3  # queries of the first head
        qkv.weight[16:24] *= 2e3  # its keys
        network.module.blocks[1].attn.qkv.weight[:16] = 0.0  # zero queries: uniform attention
    found = attention(MetricInputs.of(network, batch))
    assert found.layers["blocks.0.attn"]["collapsed-head-ratio"] == 0.5
    assert found.layers["blocks.1.attn"]["attention-entropy"] == pytest.approx(1.0)
    assert found.overall["collapsed-head-ratio"] == 0.25


def test_attention_with_a_mask_is_left_out() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = timm.layers.attention.Attention(8, 2, qkv_bias=True)
            self.head = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = 5.0 * torch.eye(8) if self.biased else None
            return self.head(self.attn(x[:, 0], mask).mean(1))

    network, batch = network_of(Biased), images(4)
    add_noise(network.module, 1.0)
    network.module.biased = False
    assert set(attention_entropies(network, batch)) == {"attn"}
    network.module.biased = True
    assert attention_entropies(network, batch) == {}
