from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.activations import for_each_activation
from plastibench.nn.dataflow import trace
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_statistics import measure_units
from tests.support.networks import images, network_of


class Functional(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.head = nn.Linear(8, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.first(x.flatten(1))))


def trace_first(activation) -> TracedLayer:
    return trace(network_of(lambda: Functional(activation)), images(4))[0]


ACTIVATIONS = {
    "F.relu": F.relu,
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "relu in place": lambda x: F.relu(x, inplace=True),
    "F.gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": lambda x: x.sigmoid(),
    "elu": F.elu,
    "leaky": F.leaky_relu,
    "softplus": F.softplus,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "sin": torch.sin,
    "module": nn.GELU(approximate="tanh"),
    "prelu": nn.PReLU(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def test_activations_are_recorded_however_they_are_called(activation):
    layer = trace_first(activation)
    assert layer.activated
    assert layer.readers == ["head"]


GATES = {
    "x sigmoid": (lambda x: x * torch.sigmoid(x), F.silu),
    "sigmoid x": (lambda x: x.sigmoid() * x, F.silu),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: F.silu(1.702 * x) / 1.702),
    "hardswish": (lambda x: x * F.hardsigmoid(x), F.hardswish),
}


@pytest.mark.parametrize(("gated", "plain"), GATES.values(), ids=GATES.keys())
def test_gated_activation_is_measured_as_the_product(gated, plain):
    batch, found = images(30), []
    for activation in (gated, lambda x: plain(x)):
        network = network_of(lambda activation=activation: Functional(activation))
        with torch.no_grad():
            network.module.first.weight[:3] = 0.0
            network.module.first.bias[:3] = 0.0  # h is 0 and the gate is 1/2
        layers = trace(network, batch)
        assert layers[0].activated and layers[0].readers == ["head"]
        seen = []
        for_each_activation(network, batch, layers[:1], lambda layer, h, seen=seen: seen.append(h.clone()))
        found.append((measure_units(network, batch, layers[:1])["first"], torch.cat(seen)))
    (mine, rows), (reference, expected) = found
    assert (mine.activation[:3] == 0).all()
    factor = (rows / expected)[:, 3:].mean()  # quick GELU differs from SiLU by a constant factor
    torch.testing.assert_close(rows, expected * factor, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine.activation, reference.activation * factor, atol=1e-6, rtol=1e-4)
    if factor.isclose(torch.tensor(1.0)):
        torch.testing.assert_close(mine.post_gradient, reference.post_gradient, atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(mine.pre_gradient, reference.pre_gradient, atol=1e-7, rtol=1e-4)


def test_gate_on_another_layer_is_an_activation_itself():
    class Excite(nn.Module):
        """Squeeze and excite: the gate is the output of another layer."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(self.first(x.flatten(1)))
            return self.head(z * torch.sigmoid(self.gate(z)))

    network, batch = network_of(Excite), images(20)
    layers = {layer.name: layer for layer in trace(network, batch)}
    assert layers["gate"].activated and not layers["gate"].columns and not layers["gate"].hidden
    z = F.relu(network.module.first(batch["image"].flatten(1)))
    expected = torch.sigmoid(network.module.gate(z)).mean(0).double()
    torch.testing.assert_close(
        measure_units(network, batch, [layers["gate"]])["gate"].activation, expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("other", [nn.Identity(), lambda x: 2 * x, lambda x: x.softmax(-1)])
def test_other_functions_are_not_activations(other):
    assert not trace_first(other).activated


@pytest.mark.parametrize(
    "merge",
    [
        lambda a, b: a + b,
        lambda a, b: torch.add(b, a),
        lambda a, b: torch.cat([b, a], 1)[:, :8],
        lambda a, b: torch.stack([a, b]).sum(0),
        lambda a, b: b.clone().add_(a),
        lambda a, b: b - a,
    ],
)
def test_merges_are_recorded_however_they_are_written(merge):
    stream = torch.ones(1, 8)

    def activation(x: Tensor) -> Tensor:
        return merge(x, stream.expand(len(x), 8))

    layer = trace_first(activation)
    assert layer.residual
    assert not layer.hidden
    assert layer.readers == []
