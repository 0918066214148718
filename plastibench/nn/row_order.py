"""Test whether the rows of a batch keep their order in a network.

A refit compares the inputs of a module in two networks row by row. This fails if a row holds different tokens in the
two networks: mixtures of experts route rows, packed sequences interleave them, token pruning selects them, and batch
statistics mix them. The module structure does not reveal this, so it is tested with a few samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.batches import CHUNK_SIZE
from plastibench.nn.network import Network, as_evaluated, seeded
from plastibench.nn.token_selection import Run, selecting_layers
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import apply_module, replaced_forwards, unit_axis, unit_parameters

Seen = dict[str, list[Tensor]]  # by layer, a fingerprint of the input of each call
_SAMPLES = 8  # for the search for moving layers
_FEW = 4  # for the search for selected tokens, which holds all activations
_GROUPS = 8  # groups of rows that are followed through the network
_TOLERANCE = 1e-2  # relative difference of a row in two batches; rows of different tokens differ by about 1
_EMPTY = 0.25  # fraction of rows
_DISTURBANCE = 1e-3  # relative size of a perturbation that rarely changes routing


class RowsMoved(Exception):
    """A layer received the rows of a doubled batch out of order; the message names the layer."""


@dataclass(frozen=True)
class RowOrder:
    """Whether rows keep their order in a network, which determines how it may be refitted.

    Attributes:
        one_pass: The two halves of a doubled batch do not influence each other, whatever the weights.
        moving: Layers whose rows hold different tokens when weights change, so that a refit is undefined.
        sizes: Size of each call's input along the batch axis in a doubled batch, by layer.
        samples: Number of samples in that doubled batch.
    """

    one_pass: bool
    moving: frozenset[str] = frozenset()
    sizes: dict[str, list[int]] = field(default_factory=dict)
    samples: int = 0

    def check(self, layer: TracedLayer, call: int, rows: int, samples: int) -> None:
        """Check that a layer receives its part of a doubled batch, as it did in the test.

        Args:
            layer: The layer.
            call: Number of its earlier calls in this forward pass.
            rows: Size of its input along the batch axis.
            samples: Number of samples in the doubled batch.

        Raises:
            RowsMoved: The layer receives a different number of rows.
        """
        sizes = self.sizes.get(layer.name, [])
        if call >= len(sizes) or rows % 2 or rows * self.samples != sizes[call] * samples:
            raise RowsMoved(layer.name)

    def note(self) -> str:
        """Return a note for the user; empty if there is nothing to report."""
        if self.one_pass:
            return ""
        text = "rows of the batch change places or influence each other, so modules are refitted in separate passes"
        if not self.moving:
            return text
        names = sorted(self.moving)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"{text}; not refitted, because their rows depend on routing: {', '.join(names[:4])}{more}"


@torch.no_grad()
def row_order(
    network: Network, batch: TensorDictBase, layers: list[TracedLayer], samples: int = CHUNK_SIZE
) -> RowOrder:
    """Test how a network treats the rows of a batch; the network and the global random state do not change.

    A doubled batch passes through the network once. Its first half uses the layers' own weights, its second half very
    different weights. Both halves must reach every layer in the same way as in separate passes.

    Args:
        network: The network.
        batch: Representative batch; the first samples are used.
        layers: Its layers with units, from :func:`plastibench.nn.dataflow.trace`.
        samples: How many samples to use.
    """
    some = batch[:samples]
    doubled = torch.cat([some, some])
    with as_evaluated(network.module), seeded(0):
        own = _pass(network, some, layers, _own)
        try:
            other = _pass(network, some, layers, _other)
            both = _pass(network, doubled, layers, _halves)
        except (RuntimeError, IndexError, ValueError, AssertionError):  # the halves have been mixed up
            return RowOrder(False, moving_layers(network, batch, layers))
    selecting = selecting_layers(network, batch[:_FEW], layers, _own, _other)
    axes = {layer.name: layer.batch_axis for layer in layers}
    apart = own.keys() == both.keys() == other.keys() and all(
        _apart(own[name], other[name], both[name], axes[name]) for name in own
    )
    if apart and not selecting:
        sizes = {name: [call.shape[axes[name]] for call in calls] for name, calls in both.items()}
        return RowOrder(True, sizes=sizes, samples=len(doubled))
    return RowOrder(False, moving_layers(network, batch, layers) | selecting)


@torch.no_grad()
def moving_layers(network: Network, batch: TensorDictBase, layers: list[TracedLayer]) -> frozenset[str]:
    """Return the names of layers whose rows hold different tokens if the weights of the network change.

    Groups of rows of the first layer are perturbed one after the other. A row of a layer has moved if it responds to
    different groups in a network with very different weights.
    """
    some = batch[:_SAMPLES]
    found: set[str] = set()
    with as_evaluated(network.module), seeded(0):
        expected = _responses(network, some, layers, _own)
        for weights in (_other, _another):
            responses = _responses(network, some, layers, weights)
            for layer in layers:
                mine, others = expected.get(layer.name), responses.get(layer.name)
                if mine is None or others is None or mine.shape != others.shape or _moved(mine, others):
                    found.add(layer.name)
    return frozenset(found)


def _own(layer: TracedLayer, inputs: Tensor) -> Tensor:
    return apply_module(layer.module, inputs, *unit_parameters(layer.module))


def _other(layer: TracedLayer, inputs: Tensor) -> Tensor:
    """Change a layer: reverse the order of its units and flip the sign of their weights."""
    weight, bias = unit_parameters(layer.module)
    return apply_module(layer.module, inputs, -weight.flip(0), None if bias is None else -bias.flip(0))


def _another(layer: TracedLayer, inputs: Tensor) -> Tensor:
    """Change a layer: give every unit the weights of the next unit; if there is only one unit, flip the sign."""
    weight, bias = unit_parameters(layer.module)
    sign = 1 if len(weight) > 1 else -1
    return apply_module(
        layer.module, inputs, sign * weight.roll(1, 0), None if bias is None else sign * bias.roll(1, 0)
    )


def _halves(layer: TracedLayer, inputs: Tensor) -> Tensor:
    if inputs.shape[layer.batch_axis] % 2:
        raise ValueError(f"{layer.name} receives an odd number of rows from a doubled batch")
    first, second = inputs.chunk(2, layer.batch_axis)
    return torch.cat([_own(layer, first), _other(layer, second)], layer.batch_axis)


def _pass(network: Network, batch: TensorDictBase, layers: list[TracedLayer], run: Run) -> Seen:
    """Run the network with other layers; return a fingerprint of each layer's inputs: one number per row."""
    seen: Seen = {}

    def note(layer: TracedLayer, inputs: Tensor) -> Tensor:
        values = inputs.movedim(unit_axis(layer.module), -1).double()
        direction = torch.linspace(1, 2 + values.shape[-1], values.shape[-1]).to(values).cos()
        seen.setdefault(layer.name, []).append(values @ direction)
        return run(layer, inputs)

    with replaced_forwards({layer.module: partial(note, layer) for layer in layers}):
        network.loss(network.module, batch)
    return seen


def _apart(own: list[Tensor], other: list[Tensor], both: list[Tensor], axis: int) -> bool:
    """Whether the two halves of the doubled batch equal the rows of the two separate passes."""
    if not len(own) == len(other) == len(both):
        return False
    for first, second, doubled in zip(own, other, both, strict=True):
        if first.shape != second.shape or doubled.shape[axis] != 2 * first.shape[axis]:
            return False
        left, right = doubled.chunk(2, axis)
        if left.shape != first.shape or not (_same(left, first) and _same(right, second)):
            return False
    return True


def _same(values: Tensor, expected: Tensor) -> bool:
    """Whether all rows agree up to rounding errors, which grow with depth; NaN and infinity agree with anything."""
    finite = values.isfinite() & expected.isfinite()
    values, expected = values[finite], expected[finite]
    if not len(values):
        return True
    scale = expected.square().mean().sqrt()
    return bool(((values - expected).abs() <= _TOLERANCE * (scale + expected.abs())).all())


def _responses(
    network: Network, batch: TensorDictBase, layers: list[TracedLayer], weights: Run
) -> dict[str, Tensor | None]:
    """Find the rows of each layer that respond to each group of first-layer rows. [groups, rows]; None: not fixed."""
    plain = _pass(network, batch, layers, weights)
    found: dict[str, Tensor | None] = {}
    for group in range(_GROUPS):

        def disturbed(layer: TracedLayer, inputs: Tensor, group: int = group) -> Tensor:
            outputs = weights(layer, inputs)
            if layer is not layers[0]:
                return outputs
            rows = outputs.movedim(unit_axis(layer.module), -1)
            numbers = torch.arange(rows[..., 0].numel(), device=rows.device).reshape(rows.shape[:-1])
            inside = numbers * _GROUPS // max(numbers.numel(), 1) == group
            noise = torch.linspace(1, 3, rows.shape[-1]).to(rows).sin() * rows.std(correction=0) * _DISTURBANCE
            return (rows + inside[..., None] * noise).movedim(-1, unit_axis(layer.module))

        moved = _pass(network, batch, layers, disturbed)
        for layer in layers:
            before, after = plain.get(layer.name, []), moved.get(layer.name, [])
            if [call.shape for call in before] != [call.shape for call in after]:
                found[layer.name] = None
            elif found.get(layer.name, before) is not None:
                pairs = zip(before, after, strict=True)
                responds = torch.cat([_differs(a, b).flatten() for a, b in pairs]) if before else torch.zeros(0)
                earlier = found.get(layer.name)
                found[layer.name] = responds[None] if earlier is None else torch.cat([earlier, responds[None]])
    return found


def _moved(mine: Tensor, others: Tensor) -> bool:
    """Whether rows respond to other groups in another network; both are [groups, rows].

    Single rows without a response may be dead units; many such rows are unused places of a buffer.
    """
    alive, living = mine.any(0), others.any(0)
    elsewhere = alive & living & ~(mine & others).any(0)
    return bool(elsewhere.any()) or int((alive ^ living).sum()) > _EMPTY * alive.numel()


def _differs(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).abs() > 1e-9 * before.abs().max().clamp_min(1e-30) if before.numel() else before > 0
