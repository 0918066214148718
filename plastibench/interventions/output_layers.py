"""The output layers of a network, which SR-SPR and BBF reinitialize."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.interventions.base import Report
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.units import unit_count


def output_layers(network: Network, batch: TensorDictBase) -> dict[str, nn.Module]:
    """Return the layers that compute the network's outputs, by name."""
    return {unit.name: unit.module for unit in trace(network, as_batch(batch)) if unit.output}


@torch.no_grad()
def reinitialize_layers(
    layers: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter], fresh: Mapping[str, Tensor]
) -> Report:
    """Copy fresh values into some layers, in place.

    Args:
        layers: The layers, by name.
        parameters: Trained parameters of the network, by name. Parameters that are not listed do not change.
        fresh: Freshly initialized values of all parameters, by name.

    Returns:
        A report that counts every unit of the layers as reinitialized.
    """
    report = Report()
    for name, parameter in parameters.items():
        if name.rpartition(".")[0] in layers:
            parameter.copy_(fresh[name])
    for name, layer in layers.items():
        count = unit_count(layer)
        report.units[name] = torch.ones(count, dtype=torch.bool, device=next(layer.parameters()).device)
        report.note(name, revived=float(count), units=float(count))
    return report
