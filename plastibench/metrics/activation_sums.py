"""Sums over the activations of each layer, from one pass over a batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.metrics.spectra import eigenvalues
from plastibench.nn.activations import ActivationCollector
from plastibench.nn.batch_pass import run_pass
from plastibench.nn.network import Network
from plastibench.nn.row_sample import RowSample, all_rows
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count

ROWS = 4096  # rows per layer for Gram matrices, whose cost grows with the square of the width
SAMPLED_ROWS = 512  # of these rows, in a quick examination of a large network


class ActivationSums(ABC):
    """Running sums over the activations h of one layer with H units, float64.

    Attributes:
        rows: Number of rows seen.
        absolute: Σ |h|. [H]
        positive: Number of rows with h > 0. [H]
        zero: Number of rows with h = 0. [H]
        thinned_rows: Number of rows that ``sum`` and ``gram`` use.
        sum: Σ h. [H]
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Start at zero."""
        self.rows = self.thinned_rows = 0
        zeros = torch.zeros(4, unit_count(module), dtype=torch.float64, device=device)
        self.absolute, self.positive, self.zero, self.sum = zeros.unbind()

    def add(self, h: Tensor) -> None:
        """Add activations h [rows, H]."""
        self.rows += len(h)
        self.absolute += h.abs().sum(0, dtype=torch.float64)
        self.positive += (h > 0).sum(0)
        self.zero += (h == 0).sum(0)
        thinned = self._thinned(h).double()
        self.thinned_rows += len(thinned)
        self.sum += thinned.sum(0)
        self._add_products(thinned)

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """Σ h hᵀ. [H, H]."""

    @abstractmethod
    def singular_values(self) -> Tensor:
        """Singular values of the matrix of thinned rows, in ascending order. [H] or [thinned_rows]."""

    @abstractmethod
    def _thinned(self, h: Tensor) -> Tensor:
        """The rows that ``sum`` and ``gram`` use."""

    @abstractmethod
    def _add_products(self, thinned: Tensor) -> None:
        """Add these rows to ``gram``."""


class EvenSums(ActivationSums):
    """Sums that use evenly spaced rows; their memory does not depend on the number of rows."""

    def __init__(self, module: nn.Module, device: torch.device, fraction: float) -> None:
        """Start at zero; ``fraction`` of ``ROWS`` is the number of rows to use of each call of :meth:`add`."""
        super().__init__(module, device)
        self._count = max(2, math.ceil(ROWS * fraction))
        size = unit_count(module)
        self._gram = torch.zeros(size, size, dtype=torch.float64, device=device)

    @property
    def gram(self) -> Tensor:
        """Σ h hᵀ. [H, H]."""
        return self._gram

    def singular_values(self) -> Tensor:
        """From the Gram matrix of the units."""
        return eigenvalues(self.gram).sqrt()

    def _thinned(self, h: Tensor) -> Tensor:
        return evenly_spaced(h, self._count)

    def _add_products(self, thinned: Tensor) -> None:
        self._gram += thinned.T @ thinned


class SampledSums(ActivationSums):
    """Sums that use random rows: cheaper for wide layers, because few rows have a small Gram matrix of their own."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Start at zero; ``SAMPLED_ROWS`` rows of each call of :meth:`add` are used."""
        super().__init__(module, device)
        self._sample = RowSample(SAMPLED_ROWS)
        self._kept: list[Tensor] = []

    @property
    def gram(self) -> Tensor:
        """Σ h hᵀ. [H, H]."""
        matrix = torch.cat(self._kept).double()
        return matrix.T @ matrix

    def singular_values(self) -> Tensor:
        """From the Gram matrix of the rows or that of the units, whichever is smaller."""
        matrix = torch.cat(self._kept).double()
        smaller = matrix @ matrix.T if len(matrix) < matrix.shape[1] else self.gram
        return eigenvalues(smaller).sqrt()

    def _thinned(self, h: Tensor) -> Tensor:
        return self._sample(h)

    def _add_products(self, thinned: Tensor) -> None:
        self._kept.append(thinned.float())  # as the network computed them


def evenly_spaced(rows: Tensor, count: int) -> Tensor:
    """Select at most ``count`` evenly spaced rows. [n, H]."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]


class SumsCollector(ActivationCollector):
    """Collects the sums of every layer that is trained and not an output.

    Attributes:
        sums: The sums by layer name.
    """

    def __init__(
        self, network: Network, units: Sequence[TracedLayer], samples: int, sample: RowSample | None = None
    ) -> None:
        """Start without sums.

        Args:
            network: The network.
            units: Its layers.
            samples: Number of samples of all chunks.
            sample: Chooses the rows that are used, of which ranks and duplicates use up to ``SAMPLED_ROWS``; None: all
                rows, of which ranks and duplicates use up to ``ROWS``.
        """
        super().__init__([unit for unit in units if unit.trained and not unit.output], self._add, sample or all_rows)
        self.sums: dict[str, ActivationSums] = {}
        self._device, self._samples, self._sampled = network.device, samples, sample is not None

    def _add(self, unit: TracedLayer, h: Tensor) -> None:
        if unit.name not in self.sums:
            self.sums[unit.name] = self._start(unit.module)
        self.sums[unit.name].add(h)

    def _start(self, module: nn.Module) -> ActivationSums:
        if self._sampled:
            return SampledSums(module, self._device)
        return EvenSums(module, self._device, min(1.0, 256 / self._samples))


def sum_activations(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer]) -> dict[str, ActivationSums]:
    """Sum the activations of every layer that is trained and not an output, by layer name."""
    collector = SumsCollector(network, units, len(batch))
    run_pass(network, batch, [collector], tracked=collector.names)
    return collector.sums
