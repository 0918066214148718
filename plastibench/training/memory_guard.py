"""Refuse networks and replay buffers that cannot fit into memory before they are allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from plastibench.config.errors import UserError
from plastibench.utils.machine import available_memory, format_bytes

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
_COPIES = 4  # the weights, plus the gradients and two Adam moments of the same size


class MemoryGuard(TorchFunctionMode):
    """Counts the tensors that are created inside the block, and refuses one that does not fit into memory.

    Operating systems overcommit memory, and then kill the process that uses it.

    Attributes:
        requested: Bytes of all tensors that were created inside the block.
    """

    def __init__(self, what: str, copies: int = _COPIES, limit: int | None = None) -> None:
        """Create a guard.

        Args:
            what: What is being created, for the message, such as ``the network``.
            copies: How many times the memory is needed, including the tensors themselves.
            limit: Bytes that are available (default: what the machine has left).
        """
        super().__init__()
        self.requested = 0
        self._what, self._copies = what, copies
        self._limit = available_memory() if limit is None else limit

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count a tensor before it is created."""
        kwargs = kwargs or {}
        if func in _FACTORIES:
            self._count(func, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
        if func is torch.full and args and isinstance(args[0], int):
            size = args[:1]
        count = 1
        for length in size:
            count *= int(length)
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        self.requested += count * dtype.itemsize
        needed = self._copies * self.requested
        if self._limit is not None and needed > self._limit:
            raise UserError(
                f"{self._what} needs at least {format_bytes(needed)} of memory, but only "
                f"{format_bytes(self._limit)} is available; choose smaller sizes (--agent.OPTION)"
            )
