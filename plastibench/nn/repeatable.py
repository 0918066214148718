"""Find modules of a few layers that can be run again from their inputs, so that their activations need not be held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from plastibench.nn.builders import is_compiled
from plastibench.nn.network import Network, as_evaluated, seeded
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import apply_module, replaced_forwards, unit_parameters

_MOST = 8  # layers: a block of a transformer
_SAMPLES = 4


def cloned(values: Any) -> Any:
    """Copy all tensors in nested containers, because a module may change its inputs in place."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)


@torch.no_grad()
def repeatable_modules(
    network: Network, batch: TensorDictBase, layers: list[TracedLayer]
) -> dict[nn.Module, list[TracedLayer]]:
    """Return the largest modules with two to eight layers that give the same outputs when they run a second time.

    Each of them runs once in a forward pass. Its layers run in the order of ``layers`` and nowhere else. Modules that
    change a cache (keys and values of a language model) or draw random numbers are left out.

    Args:
        network: The network; not changed.
        batch: Any batch; the first four samples are used.
        layers: Its layers with units, in execution order.
    """
    candidates = dict(_candidates(network.module, "", layers))
    calls: list[str] = []
    calls_in: dict[nn.Module, list[str]] = {}
    repeats: set[nn.Module] = set()

    def run(layer: TracedLayer, inputs: Tensor) -> Tensor:
        calls.append(layer.name)
        return apply_module(layer.module, inputs, *unit_parameters(layer.module))

    def run_twice(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        copies, start = cloned((args, kwargs)), len(calls)
        first = forward(*args, **kwargs)
        found = calls[start:]
        again = forward(*copies[0], **copies[1])
        same = _equal(first, again) and calls[start + len(found) :] == found  # the same layers, too
        del calls[start + len(found) :]
        if same and module not in calls_in:
            repeats.add(module)
        else:
            repeats.discard(module)
        calls_in[module] = found
        return first

    forwards = {module: partial(run_twice, module, module.forward) for module in candidates}
    own = {layer.module: partial(run, layer) for layer in layers}
    try:
        with as_evaluated(network.module), seeded(0), replaced_forwards(own), replaced_forwards(forwards):
            network.loss(network.module, batch[:_SAMPLES])
    except (RuntimeError, IndexError, ValueError, AssertionError):  # a second run has disturbed a later module
        return {}
    return {
        module: inner
        for module, inner in candidates.items()
        if module in repeats
        and list(dict.fromkeys(calls_in[module])) == [layer.name for layer in inner]
        and all(calls.count(layer.name) == calls_in[module].count(layer.name) for layer in inner)
    }


def _candidates(
    module: nn.Module, prefix: str, layers: list[TracedLayer]
) -> Iterator[tuple[nn.Module, list[TracedLayer]]]:
    for name, child in module.named_children():
        inner = [layer for layer in layers if layer.name.startswith(f"{prefix}{name}.")]
        if 2 <= len(inner) <= _MOST and not is_compiled(child):  # what it wraps has the forward function
            yield child, inner
        elif inner:
            yield from _candidates(child, f"{prefix}{name}.", inner)


def _equal(first: Any, again: Any) -> bool:
    found, expected = tree_leaves(first), tree_leaves(again)
    return len(found) == len(expected) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b)
        for a, b in zip(found, expected, strict=True)
    )
