"""Find layers whose rows are tokens that the network has selected by their values, as in token pruning.

A row of such a layer holds different tokens in two networks with different weights. The search compares the indices in
the autograd graphs of two forward passes with different weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.network import Network, as_evaluated, seeded
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import replaced_forwards, unit_axis

_SELECTS = ("GatherBackward", "IndexBackward", "IndexSelectBackward")  # beginnings of names of autograd nodes
_WRITES = ("Scatter", "IndexAdd", "IndexPut", "IndexCopy")  # their results go back to the places they came from
Run = Callable[[TracedLayer, Tensor], Tensor]


class _Pass:
    """A forward pass: the autograd graph of the loss, and the inputs of each layer.

    Attributes:
        inputs: For each layer, the nodes of its inputs that have several rows per sample.
        rows: How many rows the outputs of layers have.
        selections: The nodes that select by index, with their indices, in a fixed order.
    """

    def __init__(self, network: Network, batch: TensorDictBase, layers: Iterable[TracedLayer], run: Run) -> None:
        self.inputs: dict[str, list[Any]] = {}
        self.rows: set[int] = set()
        anchor = torch.zeros((), device=network.device, requires_grad=True)  # puts all layers into the graph

        def note(layer: TracedLayer, inputs: Tensor) -> Tensor:
            rows = inputs.numel() // max(1, inputs.shape[unit_axis(layer.module)])
            if rows > len(batch):
                self.inputs.setdefault(layer.name, []).append(inputs.grad_fn)
            outputs = run(layer, inputs) + anchor
            self.rows.add(outputs.numel() // max(1, outputs.shape[unit_axis(layer.module)]))
            return outputs

        with (
            as_evaluated(network.module),
            seeded(0),
            torch.enable_grad(),
            replaced_forwards({layer.module: partial(note, layer) for layer in layers}),
        ):
            self._loss = network.loss(network.module, batch)  # keeps the graph alive
        nodes = _upstream([self._loss.grad_fn], written=True)
        self.selections = [(node, _indices(node)) for node in nodes if node.name().startswith(_SELECTS)]


def selecting_layers(
    network: Network, batch: TensorDictBase, layers: list[TracedLayer], own: Run, other: Run
) -> frozenset[str]:
    """Return the names of layers whose rows are tokens that were selected depending on the weights.

    Layers behind a sum over the tokens, or behind one that writes the results back in place, are not among them.

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
    return frozenset(
        name for name, starts in first.inputs.items() if chosen and any(node in chosen for node in _upstream(starts))
    )


def _upstream(starts: Iterable[Any], *, written: bool = False) -> Iterator[Any]:
    """Nodes on the way back from some nodes, in a fixed order; ``written``: also those of values written by index."""
    seen: set[Any] = set()
    waiting = [*starts]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        following = [before for before, _ in node.next_functions]
        waiting += following[:1] if node.name().startswith(_WRITES) and not written else following


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
    """Whether a node selects along an axis of rows, from a tensor with as many rows as some layer has."""
    shape = node._saved_self_sym_sizes if hasattr(node, "_saved_self_sym_sizes") else node._saved_self.shape
    if len(shape) < 2 or not shape[-1]:
        return False
    if hasattr(node, "_saved_indices"):
        axes = [axis for axis, index in enumerate(node._saved_indices) if index is not None]
    else:
        axes = [node._saved_dim % len(shape)]
    count = 1
    for size in shape[:-1]:
        count *= size
    return count in rows and min(axes, default=len(shape)) < len(shape) - 1
