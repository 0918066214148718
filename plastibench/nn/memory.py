"""Estimate the activations of a forward pass from a few samples, and choose how many samples pass at once."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plastibench.nn.batches import CHUNK_SIZE
from plastibench.nn.network import Network, as_evaluated, seeded

MEMORY = 1.0  # GiB of activations that an intervention may hold by default
_FEW, _MORE = 2, 4  # samples of the two passes
_PART = 8  # a forward pass of a streamed refit uses at most this part of the limit, unless there are too many passes
_PASSES = 32  # each has a thread, for which MKL keeps a few MiB, and OpenMP its own worker threads


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors that are created inside the block and still in use.

    Unlike the statistics of an allocator, the count depends on the operations and shapes only, so a resumed run makes
    the same choices. Buffers inside a single operation are not counted.

    Attributes:
        now: Bytes in use.
        peak: The largest value of ``now``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count the storages of its results, except those of its arguments."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage._cdata not in given and storage._cdata not in self._counted:
                self._count(storage)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._counted.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """The storages of all dense tensors in nested containers."""
    tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]


@dataclass(frozen=True)
class MemoryPlan:
    """How a refit uses memory.

    Attributes:
        chunk: Samples in one forward pass.
        streamed: The activations of twice the batch exceed the limit, so the batch is streamed.
    """

    chunk: int = CHUNK_SIZE
    streamed: bool = False


def refit_plan(network: Network, batch: TensorDictBase, limit: float | None) -> MemoryPlan:
    """Choose how to refit a network. The choice depends on the network and the shape of the batch only.

    Args:
        network: The network; not changed.
        batch: Representative batch.
        limit: GiB of activations; None for :data:`MEMORY`.
    """
    found = evaluation_bytes(network, batch)
    allowed = _bytes(limit)
    if 2 * len(batch) * found <= allowed:
        return MemoryPlan()
    return MemoryPlan(max(samples_within(allowed / _PART, 2 * found), math.ceil(len(batch) / _PASSES)), True)


def scoring_chunk(network: Network, batch: TensorDictBase, limit: float | None) -> int:
    """Return how many samples a forward and backward pass may hold; see :func:`refit_plan` for the arguments."""
    return samples_within(_bytes(limit), training_bytes(network, batch))


def evaluation_bytes(network: Network, batch: TensorDictBase) -> float:
    """Return the largest bytes of activations per sample that an evaluation holds at once."""
    return _bytes_per_sample(network, batch, gradients=False)


def training_bytes(network: Network, batch: TensorDictBase) -> float:
    """Return the bytes of activations per sample that a forward pass keeps for the backward pass."""
    return _bytes_per_sample(network, batch, gradients=True)


def samples_within(limit: float, per_sample: float) -> int:
    """Return the largest power of two of samples within a limit; at least 1 and at most ``CHUNK_SIZE``."""
    count = CHUNK_SIZE
    while count > 1 and count * per_sample > limit:
        count //= 2
    return count


def _bytes(limit: float | None) -> float:
    return (MEMORY if limit is None else limit) * 2**30


def _bytes_per_sample(network: Network, batch: TensorDictBase, gradients: bool) -> float:
    """The slope between passes over 2 and 4 samples, without what does not grow with the batch."""
    if len(batch) < _MORE:
        return _peak(network, batch, gradients) / len(batch)
    few, more = (_peak(network, batch[:count], gradients) for count in (_FEW, _MORE))
    return max(0, more - few) / (_MORE - _FEW)


def _peak(network: Network, batch: TensorDictBase, gradients: bool) -> int:
    with as_evaluated(network.module), seeded(0), torch.set_grad_enabled(gradients), LiveBytes() as live:
        network.loss(network.module, batch)
    return live.peak
