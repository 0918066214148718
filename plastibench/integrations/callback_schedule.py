"""Shared by the callbacks: when to intervene, and on which samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plastibench.config.errors import UserError
from plastibench.nn.network import seeded

Draw = Callable[[], Any]


@dataclass(frozen=True)
class Schedule:
    """The optimizer steps after which to intervene. Steps are counted from 1, as the library counts them.

    Attributes:
        every: After every ``every`` steps; 0: never.
        steps: After each of these steps.
        epochs: At the end of each of these epochs, counted from 1.
    """

    every: int = 0
    steps: Sequence[int] = ()
    epochs: Sequence[int] = ()

    def due(self, step: int, epoch: int = 0) -> bool:
        """Whether to intervene now.

        Args:
            step: Number of optimizer steps so far.
            epoch: The epoch that this step completes, from 1; 0 if it does not complete an epoch.
        """
        return bool(self.every and step % self.every == 0) or step in self.steps or bool(epoch and epoch in self.epochs)


def collate(loader: Any, size: int, generator: torch.Generator) -> Any:
    """Draw a batch of samples, uniformly and without replacement, from the dataset of a data loader.

    Samples are read by index in this process and collated by the loader's ``collate_fn``. The loader's sampler, workers
    and running iterators are not affected. The global random states of torch (CPU), ``random`` and NumPy, which
    transforms use, are seeded from ``generator`` for this call and restored afterwards. State of the dataset itself
    (its own generator, a cache, a file position) is affected by the reads.

    Args:
        loader: A ``DataLoader``.
        size: Number of samples; all samples if the dataset is smaller.
        generator: A CPU generator.

    Raises:
        UserError: The dataset does not support access by index.
    """
    dataset = getattr(loader, "dataset", None)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise UserError(
            "the training data does not support access by index; pass draw=, a function that returns a batch"
        )
    chosen = torch.randperm(len(dataset), generator=generator)[:size].tolist()
    seed = int(torch.randint(2**31, (), generator=generator))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what transforms use
    try:
        with seeded(seed):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            return loader.collate_fn([dataset[index] for index in chosen])
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
