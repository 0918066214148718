from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.unit_statistics import UnitStatistics, measure_units
from tests.support.networks import add_noise, images, network_of, small_vit, state
from tests.support.references import array

FIELDS = ("activation", "pre_gradient", "post_gradient", "signed_gradient", "weight_gradient", "weight_norm")


def measured(network: Network, batch, **options) -> dict[str, UnitStatistics]:
    return measure_units(network, batch, trace(network, batch), **options)


def assert_statistics(found: UnitStatistics, expected: dict[str, np.ndarray], **tolerance: float) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(array(getattr(found, name)), values, err_msg=name, **(tolerance or {"rtol": 2e-4}))


def by_hand(pre: np.ndarray, post: np.ndarray, d_pre: np.ndarray, d_post: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of [rows, H] arrays; gradients are those of the losses of single samples."""
    return {
        "activation": np.abs(post).mean(0),
        "pre_gradient": np.abs(d_pre).mean(0),
        "post_gradient": np.abs(d_post).mean(0),
        "signed_gradient": d_pre.mean(0),
    }


def softmax(values: np.ndarray) -> np.ndarray:
    values = np.exp(values - values.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def one_hot(labels: Tensor, classes: int = 10) -> np.ndarray:
    return np.eye(classes)[labels.numpy()]


def gelu(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cdf = array(torch.special.ndtr(torch.tensor(z)))
    return z * cdf, cdf + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def relu(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(z, 0), (z > 0).astype(float)


class Toy(nn.Module):
    """Linear, activation, Linear: its statistics have closed forms."""

    def __init__(self, activation=F.gelu) -> None:
        super().__init__()
        self.first = nn.Linear(64, 6)
        self.head = nn.Linear(6, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.first(x.flatten(1))))


def toy_by_hand(module: Toy, batch, activation) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    x = array(batch["image"]).reshape(len(batch), -1)
    w1, b1, w2, b2 = map(array, (module.first.weight, module.first.bias, module.head.weight, module.head.bias))
    z = x @ w1.T + b1
    h, slope = activation(z)
    y = h @ w2.T + b2
    d_y = softmax(y) - one_hot(batch["label"])  # of the loss of each sample
    d_h = d_y @ w2
    d_z = d_h * slope
    first = by_hand(z, h, d_z, d_h) | {
        "weight_gradient": np.abs(d_z.T @ x / len(x)).mean(1),
        "weight_norm": np.linalg.norm(w1, axis=1),
    }
    head = by_hand(y, y, d_y, d_y) | {
        "weight_gradient": np.abs(d_y.T @ h / len(x)).mean(1),
        "weight_norm": np.linalg.norm(w2, axis=1),
    }
    return first, head


TOYS = {
    "gelu": (F.gelu, gelu),
    "functional relu": (F.relu, relu),
    "relu in place": (nn.ReLU(inplace=True), relu),
    "functional relu in place": (lambda x: F.relu(x, inplace=True), relu),
    "tensor method in place": (lambda x: x.relu_(), relu),
    "tanh": (lambda x: x.tanh(), lambda z: (np.tanh(z), 1 - np.tanh(z) ** 2)),
}


@pytest.mark.parametrize(("activation", "numpy"), TOYS.values(), ids=TOYS.keys())
@pytest.mark.parametrize("chunk_size", [256, 7, 1])
def test_statistics_of_a_small_network_match_numpy(activation, numpy, chunk_size):
    network, batch = network_of(lambda: Toy(activation)), images(23)  # 7 does not divide 23
    add_noise(network.module)
    found = measured(network, batch, chunk_size=chunk_size)
    first, head = toy_by_hand(network.module, batch, numpy)
    assert_statistics(found["first"], first)
    assert_statistics(found["head"], head)


def test_statistics_do_not_depend_on_the_batch_size():
    network, batch = network_of(Toy), images(12)
    once = measured(network, batch)
    twice = measured(network, torch.cat([batch, batch]))
    for field in FIELDS:
        torch.testing.assert_close(getattr(twice["first"], field), getattr(once["first"], field), rtol=1e-5, atol=0)


def test_weight_gradients_cancel_across_samples_but_row_gradients_do_not():
    network = network_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 1)))
    batch = images(2)
    batch["image"][1] = batch["image"][0]
    batch["sign"] = torch.tensor([1.0, -1.0])
    network.loss = lambda module, part: (module(part["image"])[:, 0] * part["sign"]).mean()
    found = measured(network, batch)["1"]
    np.testing.assert_allclose(array(found.weight_gradient), 0, atol=1e-7)
    np.testing.assert_allclose(array(found.signed_gradient), 0, atol=1e-7)
    np.testing.assert_allclose(array(found.pre_gradient), np.abs(array(network.module[2].weight)[0]), rtol=1e-5)


class Tokens(nn.Module):
    """A LayerNorm and a Linear on four tokens with different weights in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 5)
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.fc(self.norm(x.reshape(-1, 4, 16))))
        return self.head((tokens * torch.tensor([1.0, 2.0, 3.0, 0.0])[:, None]).mean(1))


@pytest.mark.parametrize("chunk_size", [256, 4])
def test_each_token_is_a_row(chunk_size):
    network, batch = network_of(Tokens), images(9)
    module = add_noise(network.module)
    found = measured(network, batch, chunk_size=chunk_size)
    x = array(batch["image"]).reshape(9, 4, 16)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + module.norm.eps)
    n = normed * array(module.norm.weight) + array(module.norm.bias)
    z = n @ array(module.fc.weight).T + array(module.fc.bias)
    h, slope = relu(z)
    scale = np.array([1.0, 2.0, 3.0, 0.0])[:, None] / 4
    y = (h * scale).sum(1) @ array(module.head.weight).T + array(module.head.bias)
    d_y = softmax(y) - one_hot(batch["label"])
    d_h = (d_y @ array(module.head.weight))[:, None, :] * scale
    d_z = d_h * slope
    d_n = d_z @ array(module.fc.weight)
    rows = [values.reshape(36, -1) for values in (z, h, d_z, d_h, n, d_n, normed)]
    z, h, d_z, d_h, n, d_n, normed = rows
    assert_statistics(found["fc"], by_hand(z, h, d_z, d_h) | {"weight_gradient": np.abs(d_z.T @ n / 9).mean(1)})
    assert_statistics(
        found["norm"],
        by_hand(n, n, d_n, d_n)
        | {"weight_gradient": np.abs((d_n * normed).sum(0) / 9), "weight_norm": np.abs(array(module.norm.weight))},
    )


class Map(nn.Module):
    """A convolution whose feature map is averaged after a ReLU."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 4, stride=2)
        self.act = nn.ReLU(in_place)
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("chunk_size", [256, 4])
def test_each_position_of_a_convolution_is_a_row(in_place, chunk_size):
    network, batch = network_of(lambda: Map(in_place)), images(9)
    module = add_noise(network.module)
    found = measured(network, batch, chunk_size=chunk_size)["conv"]
    x, w = array(batch["image"])[:, 0], array(module.conv.weight)[:, 0]
    z = np.zeros((9, 3, 3, 3))
    for row in range(3):
        for column in range(3):
            patch = x[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            z[:, :, row, column] = np.einsum("bij,hij->bh", patch, w) + array(module.conv.bias)
    h, slope = relu(z)
    y = h.mean((2, 3)) @ array(module.head.weight).T + array(module.head.bias)
    d_h = np.broadcast_to(
        ((softmax(y) - one_hot(batch["label"])) @ array(module.head.weight))[:, :, None, None] / 9, z.shape
    )
    d_z = d_h * slope
    as_rows = [values.transpose(0, 2, 3, 1).reshape(-1, 3) for values in (z, h, d_z, d_h)]
    assert_statistics(found, by_hand(*as_rows))
    np.testing.assert_allclose(array(found.weight_norm), np.linalg.norm(w.reshape(3, -1), axis=1), rtol=1e-6)


def test_gradients_match_finite_differences_of_the_loss():
    network, batch = network_of(lambda: Toy(F.gelu).double()), images(5).double()
    batch["label"] = batch["label"].long()
    module = add_noise(network.module)
    x = batch["image"].flatten(1)

    def losses(shift: float, unit: int) -> Tensor:
        with torch.no_grad():
            z = module.first(x)
            z[:, unit] += shift
            return F.cross_entropy(module.head(F.gelu(z)), batch["label"], reduction="none")

    slopes = torch.stack([(losses(1e-5, unit) - losses(-1e-5, unit)) / 2e-5 for unit in range(6)])
    found = measured(network, batch)["first"]
    torch.testing.assert_close(found.pre_gradient, slopes.abs().mean(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.signed_gradient, slopes.mean(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 5, 16])
def test_chunk_size_does_not_change_the_statistics_of_a_vit(chunk_size):
    network, batch = network_of(small_vit()), images(16)
    full, parts = measured(network, batch), measured(network, batch, chunk_size=chunk_size)
    for name in full:
        for field in FIELDS:
            torch.testing.assert_close(
                getattr(parts[name], field), getattr(full[name], field), rtol=1e-3, atol=1e-7, msg=f"{name} {field}"
            )


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fc(F.relu(self.fc(x.flatten(1)[:, :8])))))


def test_layer_that_runs_twice_is_averaged_over_both_runs():
    network, batch = network_of(Shared), images(9)
    module = add_noise(network.module)
    x = array(batch["image"]).reshape(9, -1)[:, :8]
    w, b = array(module.fc.weight), array(module.fc.bias)
    first, _ = relu(x @ w.T + b)
    second, _ = relu(first @ w.T + b)
    found = measured(network, batch)["fc"].activation
    np.testing.assert_allclose(array(found), (first.mean(0) + second.mean(0)) / 2, rtol=1e-5)


def test_activation_is_the_output_of_the_first_of_two_nonlinearities():
    network = network_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Tanh(), nn.Linear(6, 10)))
    batch = images(9)
    with torch.no_grad():
        z = network.module[1](batch["image"].flatten(1))
    found = measured(network, batch)["1"]
    np.testing.assert_allclose(array(found.activation), array(z.relu()).mean(0), rtol=1e-5)


RESHAPED = {
    "flattened before the activation": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 4, stride=4), nn.Flatten(), nn.ReLU(), nn.Linear(12, 10)
    ),
    "tokens before the activation": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=4), nn.Flatten(2), Transposed(), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
    ),
    "pooled before the activation": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 4, stride=4), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 10)
    ),
}


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("builder", RESHAPED.values(), ids=RESHAPED.keys())
def test_activations_of_reshaped_outputs_belong_to_their_channels(builder):
    network, batch = network_of(builder), images(9)
    module = add_noise(network.module, 0.1)
    with torch.no_grad():
        z = module[0](batch["image"])
        z = F.max_pool2d(z, 2) if isinstance(module[1], nn.MaxPool2d) else z
    expected = array(z.relu()).mean((0, 2, 3))
    np.testing.assert_allclose(array(measured(network, batch)["0"].activation), expected, rtol=1e-5)


# --- no side effects --------------------------------------------------------------------------------------------------


def test_measuring_has_no_side_effects():
    network, batch = network_of(small_vit(dropout=0.3)), images()
    module = network.module
    module.blocks[0].eval()
    module.blocks[1].mlp.fc1.weight.requires_grad_(False)
    for index, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, float(index)) if index % 2 else None
    gradients = [None if p.grad is None else (p.grad, p.grad.clone()) for p in module.parameters()]
    modes, needed = [c.training for c in module.modules()], [p.requires_grad for p in module.parameters()]
    assert len(set(modes)) == len(set(needed)) == 2
    before, states = state(module), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    own = network.generator.get_state()
    first = measured(network, batch)
    second = measured(network, batch)
    for name in first:  # eval mode: no dropout
        torch.testing.assert_close(first[name].activation, second[name].activation, rtol=0, atol=0)
    for parameter, was in zip(module.parameters(), gradients, strict=True):
        assert (parameter.grad is None) if was is None else (parameter.grad is was[0])
        assert was is None or torch.equal(was[0], was[1])
    assert [c.training for c in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == needed
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(module).items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.equal(network.generator.get_state(), own)
    assert not any(c._forward_hooks or c._forward_pre_hooks for c in module.modules())


def test_measuring_works_inside_no_grad():
    network, batch = network_of(Toy), images()
    expected = measured(network, batch)["first"]
    with torch.no_grad():
        found = measured(network, batch)["first"]
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found.pre_gradient, expected.pre_gradient, rtol=0, atol=0)


def test_hooks_and_modes_are_restored_when_the_loss_raises():
    network, batch = network_of(small_vit()), images()
    units = trace(network, batch)
    modes = [child.training for child in network.module.modules()]

    def broken(module: nn.Module, part: object) -> Tensor:
        module(part["image"])
        raise ArithmeticError

    network.loss = broken
    with pytest.raises(ArithmeticError):
        measure_units(network, batch, units)
    assert not any(c._forward_hooks or c._forward_pre_hooks for c in network.module.modules())
    assert [child.training for child in network.module.modules()] == modes
    assert torch.overrides._get_current_function_mode_stack() == []


def test_frozen_layers_are_measured():
    network, batch = network_of(Toy), images()
    expected = measured(network, batch)["first"]
    network.module.head.requires_grad_(False)
    found = measured(network, batch)["first"]
    torch.testing.assert_close(found.pre_gradient, expected.pre_gradient)
    torch.testing.assert_close(found.weight_gradient, expected.weight_gradient)
