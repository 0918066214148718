from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

from plastibench.metrics.activity import activity, attention, duplicates, evenly, tallies
from plastibench.nn.activations import for_each_activation
from plastibench.nn.attention import attention_entropies
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from tests.helpers import add_noise, array, drawn, images, loss, network_of, small_vit


def batch_of(count: int = 300) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(count, 1, 1, 6, generator=generator), torch.randint(4, (count,), generator=generator)
    return TensorDict({"image": x, "label": label}, batch_size=[count])


@pytest.fixture
def mlp() -> Network:
    """6-8-9-4, with two dead units, two copies of a unit, and a negated one."""
    module = drawn(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(True), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 4))
    )
    with torch.no_grad():
        module[1].bias[:2] = -100.0
        module[3].weight[4], module[3].bias[4] = module[3].weight[1], module[3].bias[1]
        module[3].weight[7], module[3].bias[7] = -module[3].weight[1], -module[3].bias[1]
        module[3].weight[5] = 0.0  # never varies
    return Network(module, None, loss)


def test_activity_equals_numpys(mlp: Network) -> None:
    batch = batch_of()
    w1, b1, w2, b2 = (array(p) for p in list(mlp.module.parameters())[:4])
    h1 = np.maximum(array(batch["image"]).reshape(-1, 6) @ w1.T + b1, 0)
    h2 = np.tanh(h1 @ w2.T + b2)
    units = trace(mlp, batch)
    found = activity(tallies(mlp, batch, units), units)
    assert found.layers["1"]["dead-unit-ratio"] == 2 / 8 and found.layers["3"]["dead-unit-ratio"] == 0
    both = np.concatenate([(h1 > 0).mean(0), (h2 > 0).mean(0)])
    assert found.overall["fau"] == pytest.approx(both.mean())
    assert found.layers["3"]["fau"] == pytest.approx((h2 > 0).mean())
    assert found.overall["zero-activation-ratio"] == pytest.approx((h1 == 0).sum() / (h1.size + h2.size))
    assert found.overall["dead-unit-ratio"] == pytest.approx(2 / 17)
    assert found.layers["3"]["duplicate-ratio"] == pytest.approx(2 / 9)  # units 1, 4 and 7 are one: two are too many
    with np.errstate(invalid="ignore"):
        alike = np.abs(np.nan_to_num(np.corrcoef(h1.T))) > 0.95
    assert found.layers["1"]["duplicate-ratio"] == np.triu(alike, 1).any(1).mean()
    shares = [(abs(h).mean(0) <= 0.1 * abs(h).mean()).mean() for h in (h1, h2)]
    assert found.overall["dormant-ratio-layer-mean"] == pytest.approx(np.mean(shares))
    assert shares[0] != shares[1] and "attention-entropy" not in found.overall


def test_duplicates_are_those_of_numpys_correlation() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 6))
    rows[:, 3] = rows[:, 0] + 0.1 * rows[:, 3] + 50
    rows[:, 5] = -rows[:, 2] + 0.4 * rows[:, 5]  # correlation about 0.93: not enough
    tensor = torch.from_numpy(rows)
    found = duplicates(tensor.T @ tensor, tensor.sum(0), 200)
    assert found.tolist() == np.triu(np.abs(np.corrcoef(rows.T)) > 0.95, 1).any(1).tolist()
    assert found.tolist() == [True, False, False, False, False, False]


def test_rows_are_samples_and_positions_even_where_an_activation_follows_a_reshape() -> None:
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
    torch.testing.assert_close(rows.sort(0).values, expected.sort(0).values)  # units keep their values, in any order


def test_rows_are_taken_evenly() -> None:
    rows = torch.arange(10.0)[:, None]
    assert evenly(rows, 4).flatten().tolist() == [0, 3, 6, 9]
    assert evenly(rows, 10) is rows


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_entropies_of_attention_are_those_of_the_module_itself(variant: str) -> None:
    network, batch = network_of(small_vit(variant=variant)), images(70)
    add_noise(network.module, 1.0)
    found = attention_entropies(network, batch)
    assert set(found) == {"blocks.0.attn", "blocks.1.attn"}
    network.module.eval()
    for name, entropies in found.items():
        attention = network.module.get_submodule(name)
        kept = []
        attention.fused_attn = False  # so that its attention matrix is there to be seen
        handle = attention.attn_drop.register_forward_hook(lambda _, args, out, kept=kept: kept.append(out))
        with torch.no_grad():
            network.module(batch["image"])
        handle.remove()
        weights = array(kept[0])  # [B, h, T, T]
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean((0, 2)) / np.log(weights.shape[-1])
        np.testing.assert_allclose(entropies.numpy(), entropy, rtol=1e-5)
        assert 0 < entropy.min() < entropy.max() < 1


def test_heads_that_look_at_one_token_have_collapsed() -> None:
    network, batch = network_of(small_vit()), images(8)
    with torch.no_grad():
        qkv = network.module.blocks[0].attn.qkv
        qkv.weight[:8] *= 2e3  # queries of the first head
        qkv.weight[16:24] *= 2e3  # its keys
        network.module.blocks[1].attn.qkv.weight[:16] = 0.0  # no query asks for anything: attention to all alike
    found = attention(network, batch)
    assert found.layers["blocks.0.attn"]["collapsed-head-ratio"] == 0.5
    assert found.layers["blocks.1.attn"]["attention-entropy"] == pytest.approx(1.0)
    assert found.overall["collapsed-head-ratio"] == 0.25


def test_attention_that_does_more_is_left_out() -> None:
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
