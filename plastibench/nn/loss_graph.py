"""Find the layers whose outputs feed the loss or an attention operation.

Both searches walk through the autograd graph of the loss, in which the outputs of layers are tagged. They do not depend
on module names or registration order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.network import Network, as_evaluated

_PRODUCTS = ("mmbackward", "convolution", "linearbackward", "rnn", "lstm", "gru")  # in names of autograd nodes
_LAYOUT = 12  # nodes that reshape, scale or drop attention weights between their softmax and their product with values
_OPERANDS = 3  # layers that may compute one operand of attention; more of them are a residual stream


@dataclass
class _Graph:
    """The autograd graph of a loss, whose tagged nodes are the outputs of named layers."""

    root: Any
    tags: dict[Any, str]

    def before(self, starts: Iterable[Any], stop: Collection[Any] = ()) -> tuple[set[Any], bool]:
        """Find the first tagged nodes, or nodes in ``stop``, on the way back from some nodes.

        A product with a parameter also ends a path, because it is a layer without a tag.

        Returns:
            The nodes, and whether such a product was reached.
        """
        found, seen, products = set(), set(), False
        waiting = [*starts]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self.tags or node in stop:
                found.add(node)
            elif _multiplies_parameter(node):
                products = True
            else:
                waiting += [following for following, _ in node.next_functions]
        return found, products


def upstream(starts: Iterable[Any], first_only: Callable[[Any], bool] = lambda node: False) -> Iterator[Any]:
    """Nodes of the autograd graph on the way back from some nodes, in a fixed order.

    Args:
        starts: Nodes; may be None.
        first_only: Whether to follow only the first operand of a node.
    """
    seen: set[Any] = set()
    waiting = [*starts]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            following = [operand for operand, _ in node.next_functions]
            waiting += following[:1] if first_only(node) else following


def _graph(network: Network, batch: TensorDictBase, names: Mapping[nn.Module, str]) -> _Graph:
    anchor = torch.zeros((), device=network.device, requires_grad=True)
    tags: dict[Any, str] = {}

    def tag(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        tagged = output + anchor  # in the graph, even if all parameters are frozen
        if tagged.grad_fn is not None:  # a reentrant checkpoint runs its layers without a graph
            tags[tagged.grad_fn] = names[module]
        return tagged

    hooks = [module.register_forward_hook(tag) for module in names]
    try:
        with as_evaluated(network.module), torch.enable_grad():
            loss = network.loss(network.module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return _Graph(loss.grad_fn, tags)


def layers_before_loss(network: Network, batch: TensorDictBase, names: Mapping[nn.Module, str]) -> set[str] | None:
    """Names of the layers whose output reaches the loss without another layer in between.

    A network with two heads has two such layers. A product with a parameter also counts as a layer, for example an
    output layer that uses the weight of an embedding.

    Args:
        network: The network.
        batch: A few samples.
        names: The layers and their names.

    Returns:
        None if nothing is found, for example if the loss has no gradient.
    """
    graph = _graph(network, batch, names)
    found, products = graph.before([graph.root])
    return {graph.tags[node] for node in found} if found or products else None


@dataclass
class Attention:
    """The projections of all attention operations that a forward pass contains.

    Attributes:
        inputs: Names of the layers that compute queries, keys and values.
        outputs: Names of the layers that read the result of attention.
        operations: Inputs and outputs of each operation.
    """

    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    operations: list[set[str]] = field(default_factory=list)


def find_attention(network: Network, batch: TensorDictBase, names: Mapping[nn.Module, str]) -> Attention:
    """Find the layers that feed attention operations, and the layers that read their results.

    Attention is PyTorch's fused operation, or a product of a softmax with another tensor. Packed weights of
    ``nn.MultiheadAttention`` are not layers, so they are not found.

    Args:
        network: The network.
        batch: A few samples.
        names: The layers that may be projections, and their names: matrices, not norms.
    """
    graph = _graph(network, batch, names)
    nodes = [*upstream([graph.root])]
    operands = {node: found for node in nodes if (found := _operands(node))}
    result = Attention()
    reads: dict[Any, set[str]] = {node: set() for node in operands}
    for node, name in graph.tags.items():
        read, _ = graph.before([following for following, _ in _own_operation(node)], operands)
        attention = read & operands.keys()
        if len(attention) == 1 and len(read) <= _OPERANDS:
            reads[attention.pop()].add(name)
    for node, starts in operands.items():
        feeds: set[str] = set()
        for start in starts:
            reached, _ = graph.before([start], operands)
            if len(reached) <= _OPERANDS and not reached & operands.keys():
                feeds |= {graph.tags[tagged] for tagged in reached}
        if feeds:
            result.inputs |= feeds
            result.outputs |= reads[node]
            result.operations.append(feeds | reads[node])
    result.outputs -= result.inputs
    return result


def _own_operation(node: Any) -> Any:
    """Return the operands of a tagged layer's own product, skipping reshapes of its result."""
    following = node.next_functions[0][0]
    for _ in range(_LAYOUT):
        if following is None or len(following.next_functions) != 1 or _multiplies_parameter(following):
            break
        following = following.next_functions[0][0]
    return following.next_functions if following is not None else ()


def _operands(node: Any) -> list[Any]:
    """Return the nodes of queries, keys and values if this is attention; empty otherwise."""
    name = node.name().lower()
    if name.startswith("scaleddotproduct"):
        return [following for following, _ in node.next_functions[:3]]
    if "mmbackward" not in name or len(node.next_functions) < 2 or _multiplies_parameter(node):
        return []
    for index in range(2):
        softmax = _past_layout(node.next_functions[index][0], "softmaxbackward")
        if softmax is not None:
            product = _past_sums(softmax.next_functions[0][0])
            scores = [following for following, _ in product.next_functions] if product is not None else []
            return [node.next_functions[1 - index][0], *scores] if scores else []
    return []


def _past_layout(node: Any, name: str) -> Any:
    """The first node of this name on the way back past reshapes, scaling and dropout; None if there is none."""
    for _ in range(_LAYOUT):
        if node is None or name in node.name().lower():
            return node
        if "mm" in node.name().lower() or not node.next_functions:
            return None
        node = node.next_functions[0][0]
    return None


def _past_sums(node: Any) -> Any:
    """Find the product of queries and keys behind masks, position biases and scaling; None if there is none."""
    waiting, seen = [node], 0
    while waiting and seen < 4 * _LAYOUT:
        node, seen = waiting.pop(0), seen + 1
        if node is None:
            continue
        if "mmbackward" in node.name().lower():
            if not _multiplies_parameter(node):
                return node
            continue
        waiting += [following for following, _ in node.next_functions]
    return None


def _multiplies_parameter(node: Any) -> bool:
    """Whether a node of the autograd graph is a matrix product or convolution with a parameter."""
    if not any(part in node.name().lower() for part in _PRODUCTS):
        return False
    for following, _ in node.next_functions:
        for _ in range(4):  # a parameter may be transposed, reshaped, cast or indexed first
            if following is None or len(following.next_functions) != 1:
                break
            following = following.next_functions[0][0]
        variable = getattr(following, "variable", None)
        if variable is not None and variable.ndim > 1:
            return True
    return False
