"""The number of samples that a quick examination can afford, from the cost of the network and not from the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.network import Network, eval_mode
from plastibench.nn.units import has_units, unit_weight
from plastibench.utils.wording import plural

COST = 32e9  # multiplications of all samples in one forward pass
FEWEST = 4
_PER_VALUE = 50  # cost of writing a value of an activation, in multiplications


def affordable(module: nn.Module, run: Callable[[], object], samples: int) -> int:
    """Return how many of ``samples`` samples to examine, at least :data:`FEWEST`.

    Args:
        module: The network.
        run: Runs it on one sample.
        samples: The largest number.
    """
    cost = 0

    def count(child: nn.Module, args: Any, output: Any) -> None:
        nonlocal cost
        if isinstance(output, Tensor):
            products = unit_weight(child)[0].numel() if has_units(child) else 0
            cost += output.numel() * (products + _PER_VALUE)

    leaves = [child for child in module.modules() if next(child.children(), None) is None]
    hooks = [child.register_forward_hook(count) for child in leaves]
    try:
        with eval_mode(module), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return min(samples, max(FEWEST, int(COST / max(cost, 1))))


def limited(network: Network, batch: TensorDictBase) -> tuple[TensorDictBase, list[str]]:
    """Keep as many samples of a batch as a quick examination can afford, evenly spaced, and say so in a note."""
    count = affordable(network.module, lambda: network.loss(network.module, batch[:1]), len(batch))
    return batch[spread(len(batch), count)], limit_note(count, len(batch))


def spread(total: int, count: int) -> Tensor:
    """Indices of up to ``count`` of ``total`` samples, evenly spaced: data may be sorted by class."""
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()


def limit_note(count: int, samples: int) -> list[str]:
    """A note if there are fewer samples than usual."""
    if count >= samples:
        return []
    used = f"{plural(count, 'sample')} instead of {samples:,}"
    return [f"{used}, because a forward pass of this network is expensive; use --samples N"]
