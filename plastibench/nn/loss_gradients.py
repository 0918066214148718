"""Gradients of the training loss over a representative batch, separate from training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.batches import CHUNK_SIZE, chunks
from plastibench.nn.network import Network, as_evaluated


def chunk_gradients(
    network: Network, batch: TensorDictBase, parameters: Sequence[Tensor], chunk_size: int = CHUNK_SIZE
) -> Iterator[tuple[int, tuple[Tensor | None, ...]]]:
    """Yield the size of each chunk of a batch and the gradients of its mean loss.

    Runs in eval mode and float32; ``.grad`` and modes are left as they were. The gradient of a parameter that does not
    affect the loss is None.

    Args:
        network: The network.
        batch: A large representative batch with the inputs of the loss.
        parameters: The parameters to differentiate with respect to.
        chunk_size: Samples per forward and backward pass.
    """
    with as_evaluated(network.module):
        for chunk in chunks(batch, chunk_size):
            with torch.enable_grad():
                loss = network.loss(network.module, chunk)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            yield len(chunk), found
