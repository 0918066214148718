"""Plasticity metrics that every run measures, from one pass over a probe batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.metrics.observation import Observation
from plastibench.metrics.spectra import count_for_fraction, effective_rank, singular_values
from plastibench.nn.dataflow import trace
from plastibench.nn.dormancy import below_threshold, normalized_scores
from plastibench.nn.features import features, trained_head
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_statistics import measure_units

DORMANT, GRADIENT_DORMANT, LOW_GRADIENT = 0.1, 0.01, 0.1  # thresholds on scores relative to the mean of the layer


@dataclass
class PlasticityReport:
    """Metrics of a network at one moment.

    Attributes:
        overall: Metric name to value for the network; output units are not counted.
        layers: Layer name to metric name to value.
        layernorm_gradients: LayerNorm name to E[∂L/∂z_i] of each feature (paper, Figure 3). [H]
    """

    overall: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    layernorm_gradients: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: PlasticityReport) -> None:
        """Add the metrics of another report on the same network."""
        self.overall.update(other.overall)
        for layer, values in other.layers.items():
            self.layers.setdefault(layer, {}).update(values)


def plasticity_report(
    network: Network,
    batch: TensorDictBase,
    initial: Mapping[str, Tensor] | None = None,
    units: Sequence[TracedLayer] | None = None,
    observation: Observation | None = None,
) -> PlasticityReport:
    """Measure the metrics of :data:`plastibench.metrics.PLASTICITY`.

    For frozen layers, only the weights are measured.

    Args:
        network: The network; unchanged.
        batch: Probe batch.
        initial: Initial parameters by name, for weight-distance; parameters that are missing here are ignored.
        units: Result of :func:`plastibench.nn.dataflow.trace`, if known.
        observation: What :func:`plastibench.metrics.observation.observe` has found, if known.

    Raises:
        UserError: All parameters are frozen.
    """
    if not any(p.requires_grad for p in network.module.parameters()):
        raise UserError(
            f"all parameters of the {network.role} are frozen; plasticity metrics need a trainable parameter"
        )
    units = trace(network, batch) if units is None else units
    inner = [unit for unit in units if unit.trained and not unit.output]
    head = trained_head(units)
    statistics = measure_units(network, batch, inner) if observation is None else observation.statistics
    if observation is not None:
        matrix = observation.features
    else:
        matrix = features(network, batch, head) if head is not None else None
    result = PlasticityReport()
    dormant, gradient_dormant, low, total = 0, 0, 0, 0
    for unit in inner:
        values = statistics[unit.name]
        activation, gradient = normalized_scores(values.activation), normalized_scores(values.pre_gradient)
        counts = [
            int(below_threshold(activation, DORMANT).sum()),
            int(below_threshold(gradient, GRADIENT_DORMANT).sum()),
            int(below_threshold(gradient, LOW_GRADIENT).sum()),
        ]
        size = len(activation)
        dormant, gradient_dormant, low = dormant + counts[0], gradient_dormant + counts[1], low + counts[2]
        total += size
        names = ("dormant-ratio", "gradient-dormant-ratio", "low-gradient-ratio")
        result.layers[unit.name] = {name: count / size for name, count in zip(names, counts, strict=True)}
        if isinstance(unit.module, nn.LayerNorm):
            result.layernorm_gradients[unit.name] = values.signed_gradient
    result.overall = {
        "dormant-ratio": dormant / max(total, 1),
        "gradient-dormant-ratio": gradient_dormant / max(total, 1),
        "low-gradient-ratio": low / max(total, 1),
        **(rank_metrics(matrix) if matrix is not None else {}),
        **_weight_metrics(network.module, initial),
    }
    if result.layernorm_gradients:
        last = list(result.layernorm_gradients.values())[-1]
        result.overall["layernorm-gradient-spread"] = float(last.std(correction=0))
    for unit in units:
        weight = unit.module.weight
        assert isinstance(weight, Tensor)
        result.layers.setdefault(unit.name, {})["weight-norm"] = float(weight.detach().double().norm())
    return result


def rank_metrics(matrix: Tensor) -> dict[str, float]:
    """Compute effective rank and srank of an uncentred feature matrix [N, D]."""
    singular = singular_values(matrix)
    return {"effective-rank": effective_rank(singular), "srank": count_for_fraction(singular, 0.99)}


def _weight_metrics(module: nn.Module, initial: Mapping[str, Tensor] | None) -> dict[str, float]:
    parameters = dict(module.named_parameters())
    norm = sum(p.detach().double().square().sum() for p in parameters.values())
    metrics = {"weight-norm": float(torch.as_tensor(norm).sqrt())}
    if initial:
        pairs = [(p.detach().double(), initial[n].detach().double()) for n, p in parameters.items() if n in initial]
        moved = sum((now - then).square().sum() for now, then in pairs)
        start = sum(then.square().sum() for _, then in pairs)
        metrics["weight-distance"] = float((torch.as_tensor(moved) / torch.as_tensor(start)).sqrt())
    return metrics
