"""Roll back changes to a network if an error interrupts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from plastibench.nn.network import Network


@contextmanager
def all_or_nothing(network: Network) -> Iterator[None]:
    """If the block raises, restore all parameters, buffers and optimizer state of the network.

    Keeps a copy of all these tensors inside the block. The block must not change the architecture.

    Args:
        network: The network.
    """
    tensors = [*network.module.parameters(), *network.module.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    state = network.optimizer.state if network.optimizer is not None else {}
    slots = {
        parameter: {name: value.clone() if isinstance(value, Tensor) else value for name, value in entries.items()}
        for parameter, entries in state.items()
    }
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        state.clear()
        state.update(slots)
        raise
