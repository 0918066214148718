"""Time only the matrix products of an update, which is a lower bound for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.convolution,
    _aten.convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_backward,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_efficient_attention_backward,
    _aten._scaled_dot_product_cudnn_attention,
    _aten._scaled_dot_product_cudnn_attention_backward,
}


class ProductRecorder(TorchDispatchMode):
    """Records the matrix products, convolutions and attentions inside the block, with their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Sequence[Any], Mapping[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Record a call and execute it."""
        if func.overloadpacket in _PRODUCTS:
            self._calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def __len__(self) -> int:
        return len(self._calls)

    def replay(self) -> None:
        """Repeat only the recorded products."""
        with torch.no_grad():
            for func, args, kwargs in self._calls:
                func(*args, **kwargs)


def products_of(step: Callable[[], None]) -> ProductRecorder:
    """Record the products of one call of a function, such as one update."""
    with ProductRecorder() as recorder:
        step()
    return recorder
