"""The inputs of optional metrics."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.metrics.activation_sums import ActivationSums, sum_activations
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer

_RANDOM = 4  # number of measurements that draw random numbers


@dataclass
class MetricInputs:
    """A network, a batch, and values that several metrics share.

    Metrics leave the network as it was, including its generator.

    Attributes:
        network: The network to measure.
        batch: Probe batch.
        units: The layers of the network, from :func:`plastibench.nn.dataflow.trace`.
        initial: Initial parameters by name; None if unknown.
        seeds: One seed per measurement that draws random numbers.
    """

    network: Network
    batch: TensorDictBase
    units: Sequence[TracedLayer]
    initial: Mapping[str, Tensor] | None
    seeds: Sequence[int]

    @classmethod
    def of(
        cls,
        network: Network,
        batch: TensorDictBase,
        generator: torch.Generator | None = None,
        initial: Mapping[str, Tensor] | None = None,
        units: Sequence[TracedLayer] | None = None,
    ) -> MetricInputs:
        """Trace the network if ``units`` is not given, and draw the seeds from ``generator`` (default: seed 0)."""
        units = trace(network, batch) if units is None else units
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        return cls(network, batch, units, initial, torch.randint(2**62, (_RANDOM,), generator=generator).tolist())

    @functools.cached_property
    def activation_sums(self) -> dict[str, ActivationSums]:
        """Sums over the activations of each layer; one pass over the batch, shared by all metrics."""
        return sum_activations(self.network, self.batch, self.units)

    def generator(self, index: int) -> torch.Generator:
        """Create the CPU generator of one measurement, so that no measurement changes the result of another."""
        return torch.Generator().manual_seed(self.seeds[index])
