"""Sums over the activations of each layer, from one pass over a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.activations import for_each_activation
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count

ROWS = 4096  # rows per layer for Gram matrices, whose cost grows with the square of the width


class ActivationSums:
    """Running sums over the activations h of one layer with H units, float64.

    Attributes:
        rows: Number of rows seen.
        absolute: Σ |h|. [H]
        positive: Number of rows with h > 0. [H]
        zero: Number of rows with h = 0. [H]
        thinned_rows: Number of evenly spaced rows that the last two sums use.
        sum: Σ h. [H]
        gram: Σ h hᵀ. [H, H]
    """

    def __init__(self, module: nn.Module, device: torch.device, fraction: float) -> None:
        """Start at zero; ``fraction`` of ``ROWS`` is the number of rows to use of each call of :meth:`add`."""
        size = unit_count(module)
        self.fraction = fraction
        self.rows = self.thinned_rows = 0
        zeros = torch.zeros(4, size, dtype=torch.float64, device=device)
        self.absolute, self.positive, self.zero, self.sum = zeros.unbind()
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, h: Tensor) -> None:
        """Add activations h [rows, H]."""
        self.rows += len(h)
        self.absolute += h.abs().sum(0, dtype=torch.float64)
        self.positive += (h > 0).sum(0)
        self.zero += (h == 0).sum(0)
        thinned = evenly_spaced(h, max(2, math.ceil(ROWS * self.fraction))).double()
        self.thinned_rows += len(thinned)
        self.sum += thinned.sum(0)
        self.gram += thinned.T @ thinned


def evenly_spaced(rows: Tensor, count: int) -> Tensor:
    """Select at most ``count`` evenly spaced rows. [n, H]."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]


def sum_activations(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer]) -> dict[str, ActivationSums]:
    """Sum the activations of every layer that is trained and not an output, by layer name."""
    found: dict[str, ActivationSums] = {}

    def visit(unit: TracedLayer, h: Tensor) -> None:
        if unit.name not in found:
            found[unit.name] = ActivationSums(unit.module, network.device, min(1.0, 256 / len(batch)))
        found[unit.name].add(h)

    for_each_activation(network, batch, [unit for unit in units if unit.trained and not unit.output], visit)
    return found
