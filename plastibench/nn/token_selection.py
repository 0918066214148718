"""Find layers whose rows are tokens that the network has selected by their values, as in token pruning.

A row of such a layer holds different tokens in two networks with different weights. The search compares the indices in
the autograd graphs of two forward passes with different weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.loss_graph import upstream
from plastibench.nn.network import Network, as_evaluated, seeded
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import replaced_forwards, unit_rows

_SELECTS = ("GatherBackward", "IndexBackward", "IndexSelectBackward")  # beginnings of names of autograd nodes
_SIGNED = 2**63  # autograd shows negative axes as 64-bit integers without a sign
Run = Callable[[TracedLayer, Tensor], Tensor]


class _Pass:
    """A forward pass: the autograd graph of the loss, and the inputs of each layer.

    Attributes:
        inputs: For each layer, the nodes of its inputs that have several rows per sample.
        rows: Numbers of rows of these inputs.
        selections: The nodes that select by index, with their indices, in a fixed order.
    """

    def __init__(self, network: Network, batch: TensorDictBase, layers: Iterable[TracedLayer], run: Run) -> None:
        self.inputs: dict[str, list[Any]] = {}
        self.rows: set[int] = set()
        anchor = torch.zeros((), requires_grad=True)  # puts all layers into the graph, on any device

        def note(layer: TracedLayer, inputs: Tensor) -> Tensor:
            rows = len(unit_rows(layer.module, inputs))
            if rows > len(batch):
                self.rows.add(rows)
                self.inputs.setdefault(layer.name, []).append(inputs.grad_fn)
            return run(layer, inputs) + anchor

        with (
            as_evaluated(network.module),
            seeded(0),
            torch.enable_grad(),
            replaced_forwards({layer.module: partial(note, layer) for layer in layers}),
        ):
            self._loss = network.loss(network.module, batch)  # keeps the graph alive
        nodes = upstream([self._loss.grad_fn])
        self.selections = [(node, _indices(node)) for node in nodes if node.name().startswith(_SELECTS)]


def selecting_layers(
    network: Network, batch: TensorDictBase, layers: list[TracedLayer], own: Run, other: Run
) -> frozenset[str]:
    """Return the names of layers whose rows are tokens that were selected depending on the weights.

    Layers after a sum over the tokens, or after the results were written back in place, are not among them.

    Args:
        network: The network.
        batch: A few samples.
        layers: Its layers with units.
        own: Runs a layer with its own weights.
        other: Runs it with very different weights.
    """
    first = _Pass(network, batch, layers, own)
    if not first.selections:
        return frozenset()
    second = _Pass(network, batch, layers, other)
    if len(first.selections) != len(second.selections):  # another architecture for each input: all may differ
        differing = {node for node, _ in first.selections}
    else:
        pairs = zip(first.selections, second.selections, strict=True)
        differing = {node for (node, indices), (_, others) in pairs if not _equal(indices, others)}
    chosen = {node for node in differing if _selects_tokens(node, first.rows)}
    if not chosen:
        return frozenset()
    found = {name for name, starts in first.inputs.items() if not chosen.isdisjoint(upstream(starts, _writes))}
    return frozenset(found)


def _writes(node: Any) -> bool:
    """Whether a node writes values by index into its first operand, back to the places that they came from."""
    return bool(node.name().startswith(("Scatter", "IndexAdd", "IndexPut", "IndexCopy")))


def _indices(node: Any) -> list[Tensor | None]:
    try:
        return [*node._saved_indices] if hasattr(node, "_saved_indices") else [node._saved_index]
    except RuntimeError:  # they were changed in place
        return []


def _equal(indices: list[Tensor | None], others: list[Tensor | None]) -> bool:
    return len(indices) == len(others) and all(
        (one is None and two is None) or (one is not None and two is not None and torch.equal(one, two))
        for one, two in zip(indices, others, strict=True)
    )


def _selects_tokens(node: Any, rows: Collection[int]) -> bool:
    """Whether a node selects among tokens: along the rows of [T, D] or [B, T, D].

    If there are as many rows without the axis as a layer has, each row selects among alternatives, such as the results
    of several experts. Of four axes, one belongs to experts or heads.
    """
    shape = node._saved_self_sym_sizes if hasattr(node, "_saved_self_sym_sizes") else node._saved_self.shape
    if hasattr(node, "_saved_indices"):
        axes = [axis for axis, index in enumerate(node._saved_indices) if index is not None]
    else:
        dim = node._saved_dim
        axes = [dim if dim < _SIGNED else dim - 2 * _SIGNED + len(shape)]
    if len(shape) not in (2, 3) or min(axes, default=len(shape)) == len(shape) - 1:
        return False
    others = [size for axis, size in enumerate(shape[:-1]) if axis not in axes]
    return math.prod(others) not in rows
