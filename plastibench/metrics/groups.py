"""The metrics that are measured on request, group by group."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.layers.trace import trace
from plastibench.metrics import GROUPS
from plastibench.metrics.activity import activity
from plastibench.metrics.curvature import curvature
from plastibench.metrics.gradients import gradients
from plastibench.metrics.plasticity import Health
from plastibench.metrics.probes import probes
from plastibench.metrics.ranks import ranks
from plastibench.metrics.weights import weights
from plastibench.network import Network


def measure_groups(
    network: Network,
    batch: TensorDictBase,
    names: Collection[str],
    generator: torch.Generator,
    initial: Mapping[str, Tensor] | None = None,
) -> Health:
    """Measure the named metrics (:func:`plastibench.metrics.select`); a group is computed once for all its names.

    Args:
        network: The network; left as it was, its generator included.
        batch: Probe batch.
        names: Of metrics, no groups. What does not exist for this network is left out.
        generator: A CPU generator for metrics that draw.
        initial: Parameters at the start, by name.
    """
    units = trace(network, batch)
    compute = {
        "activity": lambda: activity(network, batch, units),
        "gradients": lambda: gradients(network, batch, units),
        "ranks": lambda: ranks(network, batch, units),
        "weights": lambda: weights(network, units, initial),
        "curvature": lambda: curvature(network, batch, generator),
        "probes": lambda: probes(network, batch, units, generator),
    }
    result = Health()
    for group, members in GROUPS.items():
        if not any(name in names for name in members):
            continue
        found = compute[group]()
        result.overall.update({name: value for name, value in found.overall.items() if name in names})
        for layer, values in found.layers.items():
            wanted = {name: value for name, value in values.items() if name in names}
            if wanted:
                result.layers.setdefault(layer, {}).update(wanted)
    return result
