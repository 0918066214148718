"""What one forward and backward pass over a probe batch shows, for all metrics that need no other pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from plastibench.metrics.activation_sums import ActivationSums, SumsCollector
from plastibench.nn.attention import AttentionCollector
from plastibench.nn.batch_pass import Collector, run_pass
from plastibench.nn.features import FeatureCollector, trained_head
from plastibench.nn.mean_gradient import GradientCollector
from plastibench.nn.network import Network
from plastibench.nn.row_sample import RowSample, all_rows
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_statistics import UnitCollector, UnitStatistics

ACTIVATIONS, GRADIENT, ATTENTION = "activations", "gradient", "attention"  # what a pass may collect in addition


@dataclass(frozen=True)
class Observation:
    """The result of :func:`observe`.

    Attributes:
        finite: The loss of every chunk is finite.
        sampled: Only some rows of each layer were used, because speed matters more than the last digits.
        statistics: Statistics of the units of each layer that is trained and not an output.
        rows: Number of rows (samples, tokens or positions) behind them, by layer; 0 if the layer does not run.
        features: The input of the head, [N, D]; None if there is no trained head.
        activation_sums: Sums over the activations by layer name. This and the following are None if not collected.
        mean_gradient: The gradient of the mean loss by parameter name.
        attention: Mean entropy of each head of each attention module.
    """

    finite: bool
    sampled: bool
    statistics: Mapping[str, UnitStatistics]
    rows: Mapping[str, int]
    features: Tensor | None
    activation_sums: Mapping[str, ActivationSums] | None
    mean_gradient: Mapping[str, Tensor] | None
    attention: Mapping[str, Tensor] | None


class _Losses(Collector):
    """Checks whether the losses of all chunks are finite."""

    finite = True

    def end(self, loss: Tensor, gradients: Mapping[str, Tensor], size: int) -> None:
        self.finite = self.finite and math.isfinite(float(loss))


def observe(
    network: Network,
    batch: TensorDictBase,
    units: Sequence[TracedLayer],
    wanted: Collection[str],
    sample: RowSample | None = None,
) -> Observation:
    """Run a network forward and backward once over a batch, and collect what metrics are computed from.

    Args:
        network: The network; unchanged.
        batch: Probe batch.
        units: The layers of the network, from :func:`plastibench.nn.dataflow.trace`.
        wanted: What to collect besides statistics of units and features: ``activations``, ``gradient``, ``attention``.
        sample: The rows of each layer (samples, tokens or positions) to use; None: all.
    """
    head = trained_head(units)
    inner = [unit for unit in units if unit.trained and not unit.output]
    statistics = UnitCollector(network, inner, len(batch), sample or all_rows)
    features = None if head is None else FeatureCollector(head)
    sums = SumsCollector(network, units, len(batch), sample) if ACTIVATIONS in wanted else None
    gradient = GradientCollector(network, len(batch)) if GRADIENT in wanted else None
    attention = AttentionCollector(network) if ATTENTION in wanted else None
    losses = _Losses()
    collectors = [each for each in (statistics, features, sums, gradient, attention, losses) if each is not None]
    trained = any(p.requires_grad for p in network.module.parameters())
    run_pass(network, batch, collectors, tracked=statistics.names, backward=trained)
    return Observation(
        losses.finite,
        sample is not None,
        statistics.statistics(),
        {name: total.rows for name, total in statistics.sums.items()},
        None if features is None else features.matrix(),
        None if sums is None else sums.sums,
        None if gradient is None else gradient.total,
        None if attention is None else attention.entropies(),
    )
