"""The inputs of optional metrics."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.metrics.activation_sums import ActivationSums, sum_activations
from plastibench.metrics.observation import Observation
from plastibench.nn.attention import attention_entropies
from plastibench.nn.dataflow import trace
from plastibench.nn.features import features, trained_head
from plastibench.nn.mean_gradient import mean_gradient
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
        observation: What a pass has already collected; the rest is computed when a metric needs it.
    """

    network: Network
    batch: TensorDictBase
    units: Sequence[TracedLayer]
    initial: Mapping[str, Tensor] | None
    seeds: Sequence[int]
    observation: Observation | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        batch: TensorDictBase,
        generator: torch.Generator | None = None,
        initial: Mapping[str, Tensor] | None = None,
        units: Sequence[TracedLayer] | None = None,
        observation: Observation | None = None,
    ) -> MetricInputs:
        """Trace the network if ``units`` is not given, and draw the seeds from ``generator`` (default: seed 0)."""
        units = trace(network, batch) if units is None else units
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        seeds = torch.randint(2**62, (_RANDOM,), generator=generator).tolist()
        return cls(network, batch, units, initial, seeds, observation)

    @functools.cached_property
    def activation_sums(self) -> Mapping[str, ActivationSums]:
        """Sums over the activations of each layer; one pass over the batch, shared by all metrics."""
        known = self.observation.activation_sums if self.observation is not None else None
        return sum_activations(self.network, self.batch, self.units) if known is None else known

    @property
    def features(self) -> Tensor | None:
        """The input of the head, [N, D]; None if there is no trained head."""
        if self.observation is not None:
            return self.observation.features
        head = trained_head(self.units)
        return None if head is None else features(self.network, self.batch, head)

    @property
    def mean_gradient(self) -> Mapping[str, Tensor]:
        """The gradient of the mean loss by parameter name."""
        known = self.observation.mean_gradient if self.observation is not None else None
        return mean_gradient(self.network, self.batch) if known is None else known

    @property
    def attention(self) -> Mapping[str, Tensor]:
        """Mean entropy of each head of each attention module."""
        known = self.observation.attention if self.observation is not None else None
        return attention_entropies(self.network, self.batch) if known is None else known

    def generator(self, index: int) -> torch.Generator:
        """Create the CPU generator of one measurement, so that no measurement changes the result of another."""
        return torch.Generator().manual_seed(self.seeds[index])
