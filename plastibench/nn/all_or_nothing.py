"""Roll back changes to a network if an error interrupts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from plastibench.nn.network import Network


@contextmanager
def all_or_nothing(network: Network) -> Iterator[None]:
    """Restore all parameters, buffers and optimizer state of the network if the block raises.

    Keeps a copy of all these tensors inside the block. Nothing is restored if the block has changed the architecture.

    Args:
        network: The network.
    """
    before = {name: tensor.detach().clone() for name, tensor in _tensors(network.module).items()}
    state = network.optimizer.state if network.optimizer is not None else {}
    slots = {
        parameter: {name: value.clone() if isinstance(value, Tensor) else value for name, value in entries.items()}
        for parameter, entries in state.items()
    }
    try:
        yield
    except BaseException:
        now = _tensors(network.module)
        if {name: tensor.shape for name, tensor in now.items()} == {name: old.shape for name, old in before.items()}:
            with torch.no_grad():
                for name, old in before.items():
                    now[name].copy_(old)
            state.clear()
            state.update(slots)
        raise


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
