"""Compute optional metrics."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.metrics import MEASUREMENTS
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.observation import Observation
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer


def compute_metrics(
    network: Network,
    batch: TensorDictBase,
    names: Collection[str],
    generator: torch.Generator,
    initial: Mapping[str, Tensor] | None = None,
    units: Sequence[TracedLayer] | None = None,
    progress: Callable[[str], None] | None = None,
    observation: Observation | None = None,
) -> PlasticityReport:
    """Compute only the named metrics.

    Args:
        network: The network; unchanged, including its generator.
        batch: Probe batch.
        names: Names of metrics from :func:`plastibench.metrics.select`. Metrics that are undefined for this network
            are left out of the result.
        generator: CPU generator for metrics that draw random numbers.
        initial: Initial parameters by name.
        units: Result of :func:`plastibench.nn.dataflow.trace`, if known.
        progress: Receives the names of the metrics that are computed next.
        observation: What :func:`plastibench.metrics.observation.observe` has found, if known.
    """
    inputs = MetricInputs.of(network, batch, generator, initial, units, observation)
    result = PlasticityReport()
    for measurement in MEASUREMENTS:
        if not measurement.definitions.keys().isdisjoint(names):
            if progress is not None:
                progress(", ".join(name for name in measurement.definitions if name in names))
            module, _, function = measurement.function.partition(".")
            found = getattr(importlib.import_module(f"plastibench.metrics.{module}"), function)(inputs)
            result.overall.update(_named(found.overall, names))
            for layer, values in found.layers.items():
                if kept := _named(values, names):
                    result.layers.setdefault(layer, {}).update(kept)
    return result


def _named(values: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name in names}
