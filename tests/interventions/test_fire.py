from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.interventions.fire import Fire, projected
from tests.support.networks import agent_builder, changed, images, network_of, small_resnet, small_vit, state, train
from tests.support.references import array
from tests.support.rl import RL, rl_network

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}


def by_singular_values(matrix: np.ndarray, iterations: int = 10) -> np.ndarray:
    """Iterate on the singular values: s ← 1.5·s - 0.5·s³, from s/||W||_F."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.linalg.norm(matrix)
    for _ in range(iterations):
        s = 1.5 * s - 0.5 * s**3
    return np.sqrt(matrix.shape[0] / matrix.shape[1]) * (u * s) @ v


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def reference(weight: np.ndarray) -> np.ndarray:
    if weight.ndim == 2:
        return by_singular_values(weight)
    result = np.empty_like(weight)
    height, width = weight.shape[2:]
    for y in range(height):
        for x in range(width):
            result[:, :, y, x] = by_singular_values(weight[:, :, y, x]) / (height * width)
    return result


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)], ids=str)
def test_well_conditioned_matrices_come_to_their_polar_factor(shape):
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(shape[0], min(shape))))[0]
    v = np.linalg.qr(rng.normal(size=(shape[1], min(shape))))[0]
    matrix = (u * rng.uniform(0.5, 3, min(shape))) @ v.T
    result = projected(torch.from_numpy(matrix), 10).numpy() / np.sqrt(shape[0] / shape[1])
    np.testing.assert_allclose(result, polar(matrix), atol=1e-6)
    nearest = np.linalg.norm(matrix / np.linalg.norm(matrix) * np.sqrt(min(shape)) - result)
    turned = np.linalg.norm(matrix / np.linalg.norm(matrix) * np.sqrt(min(shape)) - np.roll(result, 1, 0))
    assert nearest < turned


def test_kernels_are_projected_at_each_position():
    weight = np.random.default_rng(1).normal(size=(6, 4, 3, 2))
    np.testing.assert_allclose(projected(torch.from_numpy(weight), 10).numpy(), reference(weight), atol=1e-10)


def test_zero_weights_are_kept():
    assert bool((projected(torch.zeros(4, 3), 10) == 0).all())


def assert_projected(network, batch, method: Fire, expected: dict[str, tuple[int, ...]]) -> None:
    """Check that exactly the given thirds of joint weights, or full weights, are projected."""
    before = state(network.module)
    report = method.intervene(network, batch)
    count = 0
    for name, thirds in expected.items():
        old, new = array(before[f"{name}.weight"]), array(network.module.get_parameter(f"{name}.weight"))
        wanted = old.copy() if thirds else reference(old)
        size = len(old) // 3
        for third in thirds:
            wanted[third * size : (third + 1) * size] = by_singular_values(old[third * size : (third + 1) * size])
        np.testing.assert_allclose(new, wanted, rtol=1e-3, atol=1e-5)
        count += old.size * len(thirds) // 3 if thirds else old.size
    assert changed(before, network.module) == {f"{name}.weight" for name in expected}
    assert report.parameters == count


def blocks(*parts: str) -> list[str]:
    return [f"blocks.{number}.{part}" for number in range(2) for part in parts]


QKV = dict.fromkeys(blocks("attn.qkv"), (0, 1, 2))
LINEAR = {**QKV, **dict.fromkeys(blocks("attn.proj", "mlp.fc1", "mlp.fc2"), ())}
CONVS = [n for n, m in small_resnet().named_modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("name", "select", "expected"),
    [
        ("vit", "auto", dict.fromkeys(blocks("attn.qkv"), (0, 1))),
        ("hnt", "auto", dict.fromkeys(blocks("attn.qkv"), (0, 1))),
        ("vit", "qk", dict.fromkeys(blocks("attn.qkv"), (0, 1))),
        ("vit", "qkv", QKV),
        ("vit", "linear", LINEAR),
        ("vit", "all", {**LINEAR, "patch_embed.proj": ()}),
        ("vit", r"^head$|blocks\.1\.attn\.qkv", {"head": (), "blocks.1.attn.qkv": (0, 1, 2)}),
        ("mlp", "auto", {"1": (), "3": ()}),
        ("mlp", "linear", {"1": (), "3": ()}),
        ("resnet", "auto", dict.fromkeys(CONVS, ())),
        ("resnet", "fc", {"fc": ()}),
    ],
)
def test_what_is_selected_is_projected_and_nothing_else(name, select, expected):
    network, batch = network_of(NETWORKS[name], lr=1e-2), images()
    train(network, batch)
    assert_projected(network, batch, Fire(select), expected)


@pytest.mark.parametrize(("name", "role"), RL)
def test_hidden_layers_of_rl_agents_are_projected(name, role):
    network, batch = rl_network(name, role)
    linear = [n for n, m in network.module.named_modules() if isinstance(m, nn.Linear)]
    assert_projected(network, batch, Fire(), {n: () for n in linear if n not in network.outputs})


class Attention(nn.Module):
    """PyTorch's attention, and attention with separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.to_q, self.to_k, self.to_v = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.reshape(-1, 4, 16))
        x = self.attention(x, x, x)[0]
        x = nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x))
        return self.head(x[:, 0])


@pytest.mark.parametrize(("select", "apart", "thirds"), [("auto", "qk", 2), ("qkv", "qkv", 3)])
def test_other_attention_modules_are_recognized(select, apart, thirds):
    network, batch = network_of(Attention), images()
    before = state(network.module)
    Fire(select).intervene(network, batch)
    names = {f"to_{letter}.weight" for letter in apart}
    assert changed(before, network.module) == {*names, "attention.in_proj_weight"}
    for name in names:
        wanted = by_singular_values(array(before[name]))
        np.testing.assert_allclose(array(network.module.get_parameter(name)), wanted, rtol=1e-3, atol=1e-5)
    joint, old = array(network.module.attention.in_proj_weight), array(before["attention.in_proj_weight"])
    for third in range(3):
        rows = slice(16 * third, 16 * (third + 1))
        wanted = by_singular_values(old[rows]) if third < thirds else old[rows]
        np.testing.assert_allclose(joint[rows], wanted, rtol=1e-3, atol=1e-5)


def test_only_optimizer_state_of_projected_rows_is_reset():
    network, batch = network_of(small_vit(), lr=1e-2), images()
    train(network, batch)
    weight = network.module.blocks[0].attn.qkv.weight
    before = {key: value.clone() for key, value in network.optimizer.state[weight].items()}
    others = [p for name, p in network.module.named_parameters() if not name.endswith("attn.qkv.weight")]
    Fire().intervene(network, batch)
    assert bool((network.optimizer.state[weight]["exp_avg"][:32] == 0).all())
    assert torch.equal(network.optimizer.state[weight]["exp_avg"][32:], before["exp_avg"][32:])
    assert torch.equal(network.optimizer.state[weight]["exp_avg_sq"][32:], before["exp_avg_sq"][32:])
    assert all(bool(network.optimizer.state[p]["exp_avg"].any()) for p in others)


@pytest.mark.parametrize(("name", "select"), [("mlp", "qk"), ("resnet", "linear"), ("vit", "nothing"), ("vit", "(")])
def test_empty_selection_is_a_user_error_and_changes_nothing(name, select):
    network, batch = network_of(NETWORKS[name]), images()
    before = state(network.module)
    with pytest.raises(UserError):
        Fire(select).intervene(network, batch)
    assert not changed(before, network.module)
