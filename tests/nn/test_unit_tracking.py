from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.activations import for_each_activation
from plastibench.nn.dataflow import trace
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_statistics import measure_units
from tests.support.networks import changed, images, method, network_of, state


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
    "in double precision": lambda x: x.double().relu().float(),
    "cos": torch.cos,
    "atan": torch.atan,
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


def assign(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0.0
    return x


# Activations that are written out, and the function of torch that computes the same.
WRITTEN_OUT = {
    "clamp": (lambda x: x.clamp(min=0), F.relu),
    "torch.clamp": (lambda x: torch.clamp(x, 0.0), F.relu),
    "clamp_min": (lambda x: x.clamp_min(0), F.relu),
    "clamp in place": (lambda x: x.clamp_(min=0), F.relu),
    "clip": (lambda x: x.clip(min=0), F.relu),
    "clamp 6": (lambda x: x.clamp(0, 6), F.relu6),
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), F.relu),
    "maximum first": (lambda x: torch.maximum(torch.zeros(()), x), F.relu),
    "max": (lambda x: torch.max(x, torch.tensor(0.0)), F.relu),
    "fmax": (lambda x: torch.fmax(x, torch.zeros(8)), F.relu),
    "maximum of two": (lambda x: torch.maximum(x, 0.01 * x), F.leaky_relu),
    "threshold": (lambda x: F.threshold(x, 0.0, 0.0), F.relu),
    "threshold module": (nn.Threshold(0.0, 0.0), F.relu),
    "where": (lambda x: torch.where(x > 0, x, 0.0), F.relu),
    "where zeros": (lambda x: torch.where(x.gt(0), x, torch.zeros_like(x)), F.relu),
    "where less": (lambda x: torch.where(x < 0, 0.0 * x, x), F.relu),
    "where leaky": (lambda x: torch.where(x > 0, x, 0.01 * x), F.leaky_relu),
    "where elu": (lambda x: torch.where(x > 0, x, x.exp() - 1), F.elu),
    "mask": (lambda x: x * (x > 0), F.relu),
    "mask first": (lambda x: (x > 0) * x, F.relu),
    "float mask": (lambda x: x * (x > 0).float(), F.relu),
    "cast mask": (lambda x: x * torch.ge(x, 0).to(x.dtype), F.relu),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), F.relu),
    "assignment": (assign, F.relu),
    "sum with absolute": (lambda x: (x + x.abs()) / 2, F.relu),
    "half sum": (lambda x: 0.5 * (torch.abs(x) + x), F.relu),
    "sign": (lambda x: x * x.sign().clamp(min=0), F.relu),
    "gelu": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2))), F.gelu),
    "new gelu": (
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "softsign": (lambda x: x / (1 + x.abs()), F.softsign),
    "softshrink": (F.softshrink, F.softshrink),
    "Tensor.where": (lambda x: x.where(x > 0, torch.zeros(())), F.relu),
    "where by name": (lambda x: torch.where(condition=x > 0, input=x, other=torch.zeros(())), F.relu),
    "detached mask": (lambda x: x * (x.detach() > 0), F.relu),
    "negated mask": (lambda x: x * (~(x <= 0)), F.relu),
    "sign bit": (lambda x: x * (~torch.signbit(x)), F.relu),
    "two conditions": (lambda x: x * ((x > 0) & (x < 100)), F.relu),
    "mask cast to the type of x": (lambda x: x * (x > 0).to(x), F.relu),
    "masked_fill of a negated mask": (lambda x: x.masked_fill(~(x > 0), 0.0), F.relu),
    "masked_scatter": (lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)), F.relu),
    "root of the square": (lambda x: (x + (x * x).sqrt()) / 2, F.relu),
    "without nan": (lambda x: F.relu(x).nan_to_num(), F.relu),
    "expit": (lambda x: x * torch.special.expit(x), F.silu),
    "special erf": (lambda x: x * 0.5 * (1.0 + torch.special.erf(x / math.sqrt(2))), F.gelu),
    "logaddexp": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), F.softplus),
}


@pytest.mark.parametrize(("written", "plain"), WRITTEN_OUT.values(), ids=WRITTEN_OUT.keys())
def test_dead_units_of_an_activation_that_is_written_out_are_found(written, plain):
    """The first three units are always negative, so that a ReLU makes them dead."""
    batch, found = images(30), []
    for activation in (written, plain):
        network = network_of(lambda activation=activation: Functional(activation))
        with torch.no_grad():
            network.module.first.weight[:3] = 0.0
            network.module.first.bias[:3] = -1.0
        layers = trace(network, batch)
        assert layers[0].hidden and layers[0].readers == ["head"]
        seen = []
        for_each_activation(network, batch, layers[:1], lambda layer, h, seen=seen: seen.append(h.clone()))
        found.append((measure_units(network, batch, layers[:1])["first"], torch.cat(seen)))
    (mine, rows), (reference, expected) = found
    factor = float((rows * expected).sum() / expected.square().sum())  # the last factor may follow the product
    torch.testing.assert_close(rows, expected * factor, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine.activation, reference.activation * factor, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(mine.pre_gradient, reference.pre_gradient, atol=1e-7, rtol=1e-4)
    if plain is F.relu:
        assert (mine.activation[:3] == 0).all()


POWERS = {
    "squared relu": lambda x: F.relu(x) ** 2,
    "square": lambda x: F.relu(x).square(),
    "product": lambda x: F.relu(x) * F.relu(x),
    "square alone": lambda x: x.square(),
    "absolute value": torch.abs,
}


@pytest.mark.parametrize("activation", POWERS.values(), ids=POWERS.keys())
def test_powers_that_a_layer_reads_are_activations(activation):
    layer = trace_first(activation)
    assert layer.hidden and layer.readers == ["head"]


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    "function",
    [
        rms_norm,
        lambda x: x / (x.abs().amax(-1, keepdim=True) + 1e-6),
        lambda x: x.masked_fill(torch.arange(8) > 3, 0.0),
        lambda x: torch.where(torch.arange(8) > 3, x, 0.0),
        lambda x: x * torch.linspace(0, 1, 8),
    ],
)
def test_norms_and_masks_are_not_activations(function):
    assert not trace_first(function).activated


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


VIEWS = {
    "heads": lambda x: x.view(len(x), 4, 2).permute(0, 2, 1).contiguous().view(len(x), 8),
    "rows": lambda x: x.view(-1, 1, 8).transpose(0, 1).contiguous().view(-1, 8),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_units_are_followed_through_views_of_moved_elements(view):
    layer = trace_first(lambda x: view(F.relu(x)))
    assert layer.hidden and sorted(layer.columns["head"].tolist()) == list(range(8))
    with torch.no_grad():  # a unit and its column must belong together
        network = network_of(lambda: Functional(lambda x: view(F.relu(x))))
        moved = trace(network, images(4))[0].columns["head"]
        network.module.first.weight[5] = 0.0
        network.module.first.bias[5] = -1.0
        before = network.module(images(4)["image"])
        network.module.head.weight[:, moved == 5] = 9.0
        torch.testing.assert_close(network.module(images(4)["image"]), before)


PARTS = {
    "chunks": lambda x: torch.cat([F.relu(part) for part in x.chunk(2, -1)], -1),
    "slices": lambda x: torch.cat([F.relu(x[:, 4:]), x[:, :4].clamp(min=0)], 1),
    "split": lambda x: torch.cat([F.relu(part) for part in torch.split(x, [3, 5], -1)], -1),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_activations_of_parts_of_the_units_are_measured_together(parts):
    batch, found = images(30), []
    for activation in (parts, F.relu):
        network = network_of(lambda activation=activation: Functional(activation))
        layers = trace(network, batch)
        assert layers[0].hidden
        found.append(measure_units(network, batch, layers[:1])["first"])
    mine, reference = found
    torch.testing.assert_close(mine.activation, reference.activation)
    if parts is not PARTS["slices"]:  # which move the units to other columns of the head
        torch.testing.assert_close(mine.post_gradient, reference.post_gradient)


def test_an_activation_minus_its_input_is_not_measured_as_the_activation():
    """It may be the activation itself (x - min(x, 0)) or a residual connection; the layer counts as a residual one."""
    assert not trace_first(lambda x: x - x.clamp(max=0)).hidden


@pytest.mark.parametrize("move", [*VIEWS.values(), lambda x: torch.cat([x[:, 4:], x[:, :4]], 1)])
def test_moved_units_of_a_single_sample_are_not_mixed_up(move):
    """In a batch of one row, moved units lie along one axis, too."""
    network, batch = network_of(lambda: Functional(lambda x: F.relu(move(x)))), images(1)
    layers, seen = trace(network, batch)[:1], []
    expected = F.relu(network.module.first(batch["image"].flatten(1))).detach()
    found = measure_units(network, batch, layers)["first"].activation
    torch.testing.assert_close(found, expected[0].double())
    for_each_activation(network, batch, layers, lambda layer, h: seen.append(h.clone()))
    torch.testing.assert_close(torch.cat(seen), expected)


def test_halves_of_one_layer_are_different_units():
    """A GLU of one layer: the product of two halves holds the units of neither."""
    layer = trace_first(lambda x: torch.cat([x[:, :4] * x[:, 4:].sigmoid()] * 2, 1))
    assert not layer.readers


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


class Gated(nn.Module):
    """A gated MLP, as in Llama; the product may be written in any order."""

    def __init__(self, product) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 6)
        self.head, self.product = nn.Linear(6, 10), product

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(self.down(self.product(self.gate(x), self.up(x))))


GATED = {
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "geglu": lambda gate, up: up * F.gelu(gate),
    "reglu": lambda gate, up: torch.mul(F.relu(gate), up),
    "glu": lambda gate, up: up * gate.sigmoid(),
    "silu written out": lambda gate, up: (gate * gate.sigmoid()) * up,
}


@pytest.mark.parametrize("product", GATED.values(), ids=GATED.keys())
def test_units_of_a_gated_mlp_are_those_of_its_activated_layer(product):
    layers = {layer.name: layer for layer in trace(network_of(lambda: Gated(product)), images(4))}
    assert layers["gate"].hidden and layers["gate"].readers == ["down"]
    assert layers["gate"].columns["down"].tolist() == list(range(8))
    assert not layers["up"].activated and not layers["up"].readers


def test_redo_silences_the_dead_neurons_of_a_gated_mlp_without_changing_the_outputs():
    network, batch = network_of(lambda: Gated(GATED["reglu"]), seed=1), images(40)
    with torch.no_grad():
        network.module.gate.bias[:3] = -100.0
    before, outputs = state(network.module), network.module(batch["image"]).detach()
    report = method("redo").intervene(network, batch)
    assert report.units["gate"].tolist() == [True] * 3 + [False] * 5 and set(report.units) == {"gate"}
    assert changed(before, network.module) == {"gate.weight", "gate.bias", "down.weight"}
    assert (network.module.down.weight[:, :3] == 0).all()
    torch.testing.assert_close(network.module(batch["image"]).detach(), outputs)


@pytest.mark.parametrize("product", [lambda gate, up: gate * up, lambda gate, up: F.relu(gate) * F.relu(up)])
def test_other_products_hold_the_units_of_neither(product):
    layers = {layer.name: layer for layer in trace(network_of(lambda: Gated(product)), images(4))}
    assert not layers["gate"].readers and not layers["up"].readers
