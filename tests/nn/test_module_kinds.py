"""Modules that compute the same in another layout are treated alike by every method."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from tests.support.moving_rows import tokens_of
from tests.support.networks import add_noise, drawn, images, loss, method, update


class Conv1D(nn.Module):
    """The layer of transformers' GPT-2, written down once more so that the test does not need the library."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=0.2))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x.flatten(1)))))))


def transposed(module: nn.Module) -> nn.Module:
    for name in ("first", "second", "head"):
        linear = getattr(module, name)
        other = Conv1D(linear.out_features, linear.in_features)
        other.weight.data, other.bias.data = linear.weight.detach().T.clone(), linear.bias.detach().clone()
        setattr(module, name, other)
    return module


class Convolutions(nn.Module):
    """Convolutions over images whose second spatial axis has length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 6, (3, 1), padding=(1, 0))
        self.second = nn.Conv2d(6, 4, (3, 1), stride=(2, 1), dilation=(2, 1), bias=False)
        self.head = nn.Linear(4 * 2, 10)
        self.spatial = 2

    def forward(self, x: Tensor) -> Tensor:
        x = tokens_of(x).reshape(len(x), 8, 8, *[1] * (self.spatial - 1))
        return self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(1))


def with_axes(kind: type[nn.Module], spatial: int) -> Callable[[nn.Module], nn.Module]:
    def convert(module: nn.Module) -> nn.Module:
        module.spatial = spatial
        for name in ("first", "second"):
            old = getattr(module, name)
            ones = [1] * (spatial - 1)
            new = kind(
                old.in_channels,
                old.out_channels,
                (3, *ones),
                stride=(old.stride[0], *ones),
                padding=(old.padding[0], *[0] * (spatial - 1)),
                dilation=(old.dilation[0], *ones),
                bias=old.bias is not None,
            )
            new.weight.data = old.weight.detach().reshape(*old.weight.shape[:3], *ones).clone()
            if old.bias is not None:
                new.bias.data = old.bias.detach().clone()
            setattr(module, name, new)
        return module

    return convert


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens_of(x)
        if self.layer.self_attn.batch_first:
            return self.head(self.layer(self.embed(x)).mean(1))
        return self.head(self.layer(self.embed(x.transpose(0, 1))).mean(0))


def sequence_first(module: nn.Module) -> nn.Module:
    module.layer.self_attn.batch_first = False
    return module


KINDS = {
    "Conv1D of GPT-2": (Mlp, transposed),
    "nn.Conv1d": (Convolutions, with_axes(nn.Conv1d, 1)),
    "nn.Conv3d": (Convolutions, with_axes(nn.Conv3d, 3)),
    "sequence-first encoder": (Encoder, sequence_first),
}
each_kind = pytest.mark.parametrize(("builder", "convert"), KINDS.values(), ids=KINDS.keys())
METHODS = {
    "rnr": {},
    "redo": {"tau": 0.9},
    "regrama-weight": {"tau": 0.9},
    "rnr-mlp": {"refit": "all|second|head", "scoring": "per-layer", "targets": "local"},
    "recouple": {"inner": "shrink-perturb"},
    "continual-backprop": {"rate": 0.2, "maturity": 1, "utility": "adaptable"},
    "self-normalized-resets": {"check": 1},
}


def network_like(builder: Callable[[], nn.Module]) -> Network:
    module = add_noise(drawn(builder), 0.1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)  # Adam would amplify rounding errors
    return Network(module, optimizer, loss, fresh=builder, generator=torch.Generator().manual_seed(3))


def same(found: Tensor, expected: Tensor) -> bool:
    found = found.T if found.shape != expected.shape and found.ndim == 2 else found
    return torch.allclose(found.reshape(expected.shape), expected, rtol=1e-3, atol=1e-5)


@each_kind
@pytest.mark.parametrize("name", METHODS)
def test_methods_do_the_same_in_another_layout(builder, convert, name):
    if builder is Mlp:  # its noise is drawn in the layout of the parameters
        one = network_like(lambda: builder())
        other = network_like(lambda: convert(builder()))
        other.module.load_state_dict({key: p.T if p.ndim == 2 else p for key, p in one.module.state_dict().items()})
    else:
        one, other = network_like(builder), network_like(lambda: convert(builder()))
    start = [p.detach().clone() for p in one.module.parameters()]
    for network in (one, other):
        made = method(name, **METHODS[name])
        made.prepare(network)
        for seed in range(3):
            update(network, made, images(24, seed=seed))
        made.intervene(network, images(40, seed=9))
    assert [layer.name for layer in trace(one, images())] == [layer.name for layer in trace(other, images())]
    assert any(not torch.equal(p, old) for p, old in zip(one.module.parameters(), start, strict=True))
    for (key, found), expected in zip(other.module.named_parameters(), one.module.parameters(), strict=True):
        assert same(found, expected), key
        mine, theirs = other.optimizer.state.get(found, {}), one.optimizer.state.get(expected, {})
        assert mine.keys() == theirs.keys(), key
        assert all(same(mine[slot], theirs[slot]) for slot in mine if slot != "step"), key
