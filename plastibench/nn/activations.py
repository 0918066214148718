"""Activations of every layer, row by row: for metrics that need more than means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plastibench.nn.batch_pass import Collector, run_pass
from plastibench.nn.network import Network
from plastibench.nn.row_sample import Rows, all_rows
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_tracking import axis_of_units
from plastibench.nn.units import unit_axis, unit_count

Callback = Callable[[TracedLayer, Tensor], None]


class ActivationCollector(Collector):
    """Calls a function with the activations of every layer; see :func:`for_each_activation`."""

    def __init__(self, layers: Iterable[TracedLayer], callback: Callback, rows_of: Rows = all_rows) -> None:
        """Report the activations of the given layers to ``callback``, on the rows that ``rows_of`` chooses."""
        self._rows_of = rows_of
        self._layers = {layer.name: layer for layer in layers}
        self.names = {layer.module: name for name, layer in self._layers.items()}
        self._callback = callback
        self._awaiting: set[str] = set()  # h is the output of the first nonlinearity after each run of the module

    def attach(self) -> list[RemovableHandle]:
        """Observe the outputs of the layers."""
        return [module.register_forward_hook(self._forward) for module in self.names]

    @torch.no_grad()
    def _forward(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer = self._layers[self.names[module]]
        if layer.activated:
            self._awaiting.add(layer.name)
        else:
            self._callback(layer, self._rows_of(output.detach().movedim(unit_axis(module), -1)))

    @torch.no_grad()
    def activation(self, name: str, output: Tensor, unit: Tensor) -> None:
        """The first activation after a run of a layer is that of its units."""
        if name in self._awaiting:
            self._awaiting.discard(name)
            layer = self._layers[name]
            rows = _rows_by_unit(output.detach(), unit, unit_count(layer.module), self._rows_of)
            if rows is not None:
                self._callback(layer, rows)


def for_each_activation(
    network: Network, batch: TensorDictBase, layers: Sequence[TracedLayer], callback: Callback
) -> None:
    """Call ``callback(layer, h)`` for each layer and chunk of the batch, in eval mode and float32.

    ``h`` [rows, H] is the output of the nonlinearity that follows the layer, or the layer's own output if there is
    none. A row is a sample, token or spatial position. A layer is skipped if its units have different numbers of
    activations.

    Args:
        network: The network; left as it was.
        batch: Probe batch.
        layers: The layers of interest, from :func:`plastibench.nn.dataflow.trace`.
        callback: Must not keep ``h`` itself: an in-place function may overwrite it later.
    """
    collector = ActivationCollector(layers, callback)
    run_pass(network, batch, [collector], tracked=collector.names)


def _rows_by_unit(values: Tensor, unit: Tensor, count: int, rows_of: Rows) -> Tensor | None:
    """Reshape values to [rows, H], given the unit of each element; None if the units have different numbers of them."""
    if (axis := axis_of_units(unit, count)) is not None:
        return rows_of(values.movedim(axis, -1))
    numbers = unit.flatten().long()
    if len(torch.bincount(numbers, minlength=count).unique()) > 1:
        return None
    return rows_of(values.flatten()[numbers.argsort(stable=True)].reshape(count, -1).T)
