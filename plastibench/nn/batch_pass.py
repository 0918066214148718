"""One pass over a batch in which several collectors observe the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plastibench.nn.batches import CHUNK_SIZE, chunks
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.unit_tracking import UnitTracker


class Collector:
    """Collects something in a pass over a batch; every method has a do-nothing default."""

    def attach(self) -> list[RemovableHandle]:
        """Register hooks, which the pass removes at its end."""
        return []

    def begin(self, size: int) -> None:
        """Begin a chunk of ``size`` samples."""

    def activation(self, name: str, output: Tensor, unit: Tensor) -> None:
        """Receive the output of an activation, as :class:`plastibench.nn.unit_tracking.UnitTracker` reports it."""

    def end(self, loss: Tensor, gradients: Mapping[str, Tensor], size: int) -> None:
        """Receive the mean loss of a chunk and its gradients by parameter name (none without a backward pass)."""


def run_pass(
    network: Network,
    batch: TensorDictBase,
    collectors: Sequence[Collector],
    *,
    tracked: Mapping[nn.Module, str] | None = None,
    backward: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> None:
    """Run a network over a batch, in eval mode and float32.

    ``.grad``, the modes of all modules and the global random state are left as they were.

    Args:
        network: The network.
        batch: A batch with the inputs of the loss.
        collectors: What observes the pass.
        tracked: The layers whose activations are reported, and their names.
        backward: Also compute the gradients of the trained parameters.
        chunk_size: Samples per forward pass.
    """
    trained = {name: p for name, p in network.module.named_parameters() if p.requires_grad} if backward else {}

    def on_activation(name: str, output: Tensor, unit: Tensor) -> None:
        for collector in collectors:
            collector.activation(name, output, unit)

    hooks = [hook for collector in collectors for hook in collector.attach()]
    try:
        with as_evaluated(network.module), torch.set_grad_enabled(backward):
            for chunk in chunks(batch, chunk_size):
                for collector in collectors:
                    collector.begin(len(chunk))
                with UnitTracker(dict(tracked), on_activation) if tracked else nullcontext():
                    loss = network.loss(network.module, chunk)
                found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if backward else ()
                gradients = {name: grad for name, grad in zip(trained, found, strict=True) if grad is not None}
                for collector in collectors:
                    collector.end(loss.detach(), gradients, len(chunk))
    finally:
        for hook in hooks:
            hook.remove()
