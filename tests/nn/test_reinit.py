from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.dataflow import trace
from plastibench.nn.reinit import include_normalized_layers, reinitialize_units, zero_outgoing
from tests.support.networks import (
    add_noise,
    agent_builder,
    constant,
    images,
    logits,
    network_of,
    small_vit,
    state,
    train,
)
from tests.support.references import array


def mask(length: int, *true: int) -> Tensor:
    return torch.tensor([index in true for index in range(length)])


def sequential(*layers) -> nn.Sequential:
    return nn.Sequential(*layers)


class Tokens(nn.Module):
    """A Linear on tokens, flattened with the tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 4)
        self.head = nn.Linear(4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(x.reshape(-1, 4, 16))).flatten(1))


class ChannelsLast(nn.Module):
    """A convolution, flattened with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 4, 4, stride=4)
        self.head = nn.Linear(4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(x)).permute(0, 2, 3, 1).flatten(1))


class Mixer(nn.Module):
    """A Linear over tokens reads a Linear over channels; the numbers of tokens and channels are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 4)
        self.mixing = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(x.reshape(-1, 4, 16))).transpose(1, 2)
        return self.head(F.relu(self.mixing(x)).transpose(1, 2).mean(1))


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 8)
        self.left, self.right = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x.flatten(1)))
        return self.left(h) * self.right(h)


NETWORKS = {
    "mlp": (agent_builder("mlp", width=8), "1"),
    "conv to conv": (lambda: sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, 2), nn.Flatten(),
                                        nn.Linear(12, 10)), "0"),
    "conv, batchnorm": (lambda: sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                                           nn.Conv2d(4, 3, 6), nn.Flatten(), nn.Linear(3, 10)), "0"),
    "conv, pooling, flattened": (lambda: sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                                    nn.Linear(36, 10)), "0"),
    "conv, mean, linear": (lambda: sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                              nn.Linear(4, 10)), "0"),
    "vit": (small_vit(), "blocks.1.mlp.fc1"),
    "two readers": (TwoReaders, "inner"),
    "tokens, flattened": (Tokens, "inner"),
    "channels last, flattened": (ChannelsLast, "inner"),
}  # fmt: skip


def fix_outputs(module: nn.Module, channels: list[int], value: float, dim: int):
    """Fix these outputs of the module to ``value``."""

    def replace(_: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.index_fill(dim, torch.tensor(channels), value)

    return module.register_forward_hook(replace)


@pytest.mark.parametrize(("builder", "name"), NETWORKS.values(), ids=NETWORKS.keys())
def test_zero_outgoing_removes_the_influence_of_the_units_and_nothing_else(builder, name):
    network, batch = network_of(builder), images(8)
    add_noise(network.module)
    module = network.module.get_submodule(name)
    dim = 1 if isinstance(module, nn.Conv2d) else -1
    before = logits(network.module, batch)
    # Units 1 and 2 far below zero (before a BatchNorm with positive scale) have no effect after a ReLU or GELU.
    handle = fix_outputs(module, [1, 2], -1e4, dim)
    for child in network.module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.weight.data.abs_()
    silent = logits(network.module, batch)
    handle.remove()
    assert (silent - before).abs().max() > 1e-3
    units = trace(network, batch)
    zero_outgoing(network, units, {name: mask(len(module.weight), 1, 2)}, "mean")
    torch.testing.assert_close(logits(network.module, batch), silent, rtol=1e-4, atol=1e-5)
    fix_outputs(module, [1, 2], 3.0, dim)  # the values of the units no longer matter
    torch.testing.assert_close(logits(network.module, batch), silent, rtol=1e-4, atol=1e-5)


def test_zero_outgoing_skips_readers_over_another_axis():
    network, batch = network_of(Mixer), images(8)
    before = state(network.module)
    zero_outgoing(network, trace(network, batch), {"inner": mask(4, 1)}, "mean")
    assert torch.equal(network.module.mixing.weight, before["mixing.weight"])  # its columns are tokens


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU])
def test_zero_outgoing_passes_through_a_layer_norm(activation):
    layers = nn.Linear(64, 8), activation(), nn.LayerNorm(8), nn.Linear(8, 10)
    network = network_of(lambda: sequential(nn.Flatten(), *layers))
    before = state(network.module)
    zero_outgoing(network, trace(network, images(8)), {"1": mask(8, 1, 5)}, "mean")
    before["4.weight"][:, [1, 5]] = 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(network.module).items())


def test_zero_outgoing_skips_a_layer_norm_with_unknown_readers():
    class Mixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[2](F.relu(self[1](self[0](x))))
            return self[3](x + 1.0 * x.roll(1, 1))

    layers = nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10)
    network = network_of(lambda: Mixed(*layers))
    before = state(network.module)
    units = trace(network, images(8))
    assert not any(unit.hidden for unit in units)
    zero_outgoing(network, units, {"1": mask(8, 1)}, "mean")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(network.module).items())


def test_masks_of_a_layer_norm_include_the_layer_that_it_normalizes():
    layers = nn.Linear(64, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 10)
    network = network_of(lambda: sequential(nn.Flatten(), *layers))
    masks = {"2": mask(6, 0, 1), "5": mask(6, 2)}
    found = include_normalized_layers(trace(network, images(8)), masks)
    assert set(found) == {"1", "2", "5"}  # 4 and 5 have the same width, but 5 does not normalize 4
    assert found["1"] is masks["2"]


def test_zero_outgoing_resets_the_moments():
    builder = agent_builder("mlp", width=8)
    network, batch = train(network_of(builder, lr=1e-2), images(16)), images(16)
    reader = network.module[3].weight
    before = {name: value.clone() for name, value in network.optimizer.state[reader].items()}
    zero_outgoing(network, trace(network, batch), {"1": mask(8, 2, 5)}, "zero")
    after = network.optimizer.state[reader]
    masked = mask(8, 2, 5)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[name][:, ~masked], before[name][:, ~masked])
        assert float(after[name][:, masked].abs().max()) == 0
        assert float(before[name][:, masked].abs().max()) > 0


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        (agent_builder("mlp", width=8), "3"),
        (small_vit(), "blocks.0.norm2"),
        (small_vit(), "patch_embed.proj"),
        (small_vit(variant="hnt"), "blocks.0.attn.qkv"),
    ],
)
def test_reinitialization_copies_the_fresh_rows_only(builder, name):
    network, batch = train(network_of(builder, lr=1e-2), images(16)), images(16)
    module = network.module.get_submodule(name)
    before = state(network.module)
    chosen = mask(len(module.weight), 0, 3)
    fresh = constant(builder, 7.0)()
    count = reinitialize_units(network, trace(network, batch), {name: chosen}, fresh, "mean")
    own = {f"{name}.{key}" for key, _ in module.named_parameters()}
    for key, tensor in state(network.module).items():
        if key in own:
            assert (tensor[chosen] == 7).all()
            assert torch.equal(tensor[~chosen], before[key][~chosen])
        else:
            assert torch.equal(tensor, before[key])
    assert count == sum(before[key][chosen].numel() for key in own)
    for parameter in module.parameters():
        moments = network.optimizer.state[parameter]
        assert float(moments["exp_avg"][chosen].abs().max()) == 0
        assert array(moments["exp_avg_sq"][chosen]).std() == 0  # one value, the mean of the others
        torch.testing.assert_close(moments["exp_avg_sq"][chosen].flatten()[0], moments["exp_avg_sq"][~chosen].mean())


def test_empty_masks_change_nothing():
    network, batch = train(network_of(agent_builder("mlp", width=8), lr=1e-2), images()), images()
    before = state(network.module)
    moments = network.optimizer.state[network.module[1].weight]["exp_avg"].clone()
    units = trace(network, batch)
    assert reinitialize_units(network, units, {"1": mask(8)}, network.fresh(), "mean") == 0
    zero_outgoing(network, units, {"1": mask(8)}, "mean")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(network.module).items())
    assert torch.equal(network.optimizer.state[network.module[1].weight]["exp_avg"], moments)
