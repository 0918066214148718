"""Features of a network: the input of its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plastibench.nn.batch_pass import Collector, run_pass
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_rows


def trained_head(units: Sequence[TracedLayer]) -> TracedLayer | None:
    """Return the first output layer that is trained; its input is the feature matrix of the network."""
    return next((unit for unit in units if unit.trained and unit.output), None)


class FeatureCollector(Collector):
    """Collects the input of the output layer."""

    def __init__(self, head: TracedLayer) -> None:
        """Observe the output layer ``head``."""
        self._module, self._rows = head.module, list[Tensor]()

    def attach(self) -> list[RemovableHandle]:
        """Observe the input of the output layer."""
        return [self._module.register_forward_pre_hook(self._keep)]

    def _keep(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._rows.append(unit_rows(self._module, args[0].detach()))

    def matrix(self) -> Tensor | None:
        """One row per sample, [N, D]; None if the layer did not run."""
        return torch.cat(self._rows) if self._rows else None


def features(network: Network, batch: TensorDictBase, head: TracedLayer) -> Tensor:
    """Compute the input of the output layer, one row per sample. [N, D]."""
    collector = FeatureCollector(head)
    run_pass(network, batch, [collector])
    matrix = collector.matrix()
    assert matrix is not None  # the head has run when the layers were traced
    return matrix
