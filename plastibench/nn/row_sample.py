"""Choose rows (samples, tokens or positions) of activations and gradients: all, or a fixed random sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rows = Callable[[Tensor], Tensor]  # [..., H] -> [rows, H]


def all_rows(values: Tensor) -> Tensor:
    """All rows of values [..., H]. [rows, H]."""
    return values.flatten(0, -2)


class RowSample:
    """Draws up to ``count`` rows without replacement, the same ones of all tensors with equally many rows.

    A layer's activations and their gradients are therefore sampled at the same positions, in every network.
    """

    def __init__(self, count: int) -> None:
        """Choose up to ``count`` rows."""
        self._count = count
        self._chosen: dict[int, Tensor] = {}  # by the number of rows

    def __call__(self, values: Tensor) -> Tensor:
        """Rows of values [..., H]. [rows, H]."""
        total = values.shape[:-1].numel()
        if total <= self._count:
            return all_rows(values)
        if total not in self._chosen:
            order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
            self._chosen[total] = order[: self._count].sort().values
        return values[torch.unravel_index(self._chosen[total].to(values.device), values.shape[:-1])]
