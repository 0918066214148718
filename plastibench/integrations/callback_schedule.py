"""Shared by the callbacks: when to intervene, and on which samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

from plastibench.config.errors import UserError
from plastibench.nn.network import Network, as_batch, seeded

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
    transforms use, are seeded from ``generator`` for this call and restored afterwards. The reads do affect the state
    of the dataset itself (its own generator, a cache, a file position).

    Args:
        loader: A ``DataLoader``.
        size: Number of samples; all samples if the dataset is smaller. If the dataset returns batches (a loader with
            ``batch_size=None``), as many batches as needed.
        generator: A CPU generator.

    Raises:
        UserError: The dataset does not support access by index.
    """
    dataset = getattr(loader, "dataset", None)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise UserError("the training data does not support indexing; pass draw=, a function that returns a batch")
    chosen = torch.randperm(len(dataset), generator=generator).tolist()
    seed = int(torch.randint(2**31, (), generator=generator))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what transforms use
    try:
        with seeded(seed):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            if getattr(loader, "batch_sampler", loader) is None:  # batch_size=None: the samples are batches
                return _joined((loader.collate_fn(dataset[index]) for index in chosen), size)
            return loader.collate_fn([dataset[index] for index in chosen[:size]])
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def try_builder(network: Network) -> None:
    """Build a module once, without the network's generator.

    Raises:
        UserError: The builder fails, or its module does not match the network.
    """
    try:
        with seeded(0):
            network.builder()()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"PlasticityCallback: fresh= failed: {type(error).__name__}: {error}") from error


def _joined(batches: Iterable[Any], size: int) -> Any:
    """Concatenate batches until there are enough samples; leaves that are not tensors come from the first batch."""
    parts, count = [], 0
    for batch in batches:
        parts.append(batch)
        count += next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), size)
        if count >= size:
            break

    def join(*leaves: Any) -> Any:
        return torch.cat(leaves)[:size] if isinstance(leaves[0], Tensor) and leaves[0].ndim else leaves[0]

    return tree_map(join, parts[0], *parts[1:])


class Packing:
    """Converts batches of any structure (a tensor, nested containers, numbers inside) to a TensorDict and back.

    Tensors with one entry per sample go into the TensorDict. Other leaves are kept as they are in the latest batch.
    """

    def __init__(self) -> None:
        self._spec: Any = None
        self._leaves: list[Any] = []
        self._keys: dict[int, str] = {}  # position of a leaf to its key

    def pack(self, batch: Any) -> TensorDictBase:
        """Convert a batch; the keys are the names or positions of the tensors, joined by a slash.

        Raises:
            UserError: It contains no tensor with samples.
        """
        if isinstance(batch, TensorDictBase):
            self._spec = None
            return as_batch(batch)
        paths, self._spec = tree_flatten_with_path(batch)
        self._leaves = [leaf for _, leaf in paths]
        counts = [len(leaf) for leaf in self._leaves if isinstance(leaf, Tensor) and leaf.ndim]
        if not counts:
            raise UserError(f"a batch must contain tensors with one entry per sample; got {type(batch).__name__}")
        size = max(set(counts), key=lambda count: (counts.count(count), count == counts[0]))
        names = ["/".join(_name(key) for key in path) or "0" for path, _ in paths]
        self._keys = {
            i: names[i] for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor) and leaf.shape[:1] == (size,)
        }
        return TensorDict({key: self._leaves[i] for i, key in self._keys.items()}, batch_size=[size])

    def unpack(self, batch: TensorDictBase) -> Any:
        """Convert back to the structure of the latest packed batch."""
        if self._spec is None:
            return batch
        leaves = [*self._leaves]
        for position, key in self._keys.items():
            leaves[position] = batch[key]
        moved = [leaf.to(batch.device) if isinstance(leaf, Tensor) and batch.device else leaf for leaf in leaves]
        return tree_unflatten(moved, self._spec)


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
