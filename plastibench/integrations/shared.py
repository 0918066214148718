"""What the callbacks share: when to act, and on which samples."""

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
    """After which optimizer steps to intervene; counted from 1 within a training, as the library counts them.

    Attributes:
        every: Every so many steps; 0 for never.
        steps: These steps.
        epochs: The last step of each of these epochs.
    """

    every: int = 0
    steps: Sequence[int] = ()
    epochs: Sequence[int] = ()

    def due(self, step: int, epoch: int = 0) -> bool:
        """Whether to act now.

        Args:
            step: Optimizer steps made.
            epoch: The epoch that this step completes, from 1; 0 where it completes none.
        """
        return bool(self.every and step % self.every == 0) or step in self.steps or bool(epoch and epoch in self.epochs)


def collate(loader: Any, size: int, generator: torch.Generator) -> Any:
    """A batch of samples that are drawn evenly, without replacement, from the data set behind a data loader.

    They are read by index in this process and put together by the loader's own ``collate_fn``; its sampler, workers and
    running iterators are not touched. Transforms that draw from the global states of torch (CPU), ``random`` or NumPy
    draw from the generator instead, and these states are put back. What a data set keeps itself (a generator of its
    own, a cache, a file's position) does see the reads.

    Args:
        loader: A ``DataLoader``.
        size: Samples; all there are if fewer.
        generator: A CPU generator.

    Raises:
        UserError: The data cannot be read by index.
    """
    dataset = getattr(loader, "dataset", None)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise UserError("the training data cannot be read by index; give the callback draw=, which returns a batch")
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
