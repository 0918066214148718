"""Split a batch: into consecutive chunks that bound memory, or into random minibatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from tensordict import TensorDictBase

CHUNK_SIZE = 256  # samples in one forward and backward pass


def chunks(batch: TensorDictBase, size: int = CHUNK_SIZE) -> Iterable[TensorDictBase]:
    """Consecutive parts of a batch with at most ``size`` samples each."""
    return batch.split(size)


def minibatches(batch: TensorDictBase, size: int, generator: torch.Generator) -> Iterator[TensorDictBase]:
    """Endless random minibatches, sampled without replacement; the batch is reshuffled after each pass.

    Args:
        batch: The samples.
        size: Samples per minibatch; the remainder of each pass is dropped.
        generator: A CPU generator.
    """
    size = min(size, len(batch))
    while True:
        order = torch.randperm(len(batch), generator=generator)
        for index in order[: len(batch) // size * size].split(size):
            yield batch[index.to(batch.device)] if batch.device is not None else batch[index]
