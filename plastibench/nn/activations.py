"""Activations of every layer, row by row: for metrics that need more than means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.batches import chunks
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_tracking import UnitTracker
from plastibench.nn.units import unit_count, unit_rows

Callback = Callable[[TracedLayer, Tensor], None]


@torch.no_grad()
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
    by_name = {layer.name: layer for layer in layers}
    names = {layer.module: layer.name for layer in layers}
    awaiting: set[str] = set()  # h is the output of the first nonlinearity after each run of the module

    def on_activation(name: str, output: Tensor, unit: Tensor) -> None:
        if name in awaiting:
            awaiting.discard(name)
            rows = _rows_by_unit(output, unit, unit_count(by_name[name].module))
            if rows is not None:
                callback(by_name[name], rows)

    def on_forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer = by_name[names[module]]
        if layer.activated:
            awaiting.add(layer.name)
        else:
            callback(layer, unit_rows(module, output))

    hooks = [module.register_forward_hook(on_forward) for module in names]
    try:
        with as_evaluated(network.module):
            for chunk in chunks(batch):
                with UnitTracker(names, on_activation):
                    network.loss(network.module, chunk)
    finally:
        for hook in hooks:
            hook.remove()


def _rows_by_unit(values: Tensor, unit: Tensor, count: int) -> Tensor | None:
    """Reshape values to [rows, H], given the unit of each element; None if the units have different numbers of them."""
    axes = [axis for axis, stride in enumerate(unit.stride()) if stride and unit.shape[axis] > 1]
    if len(axes) == 1 and unit.shape[axes[0]] == count:  # the units still lie along one axis
        return values.movedim(axes[0], -1).flatten(0, -2)
    numbers = unit.flatten().long()
    if len(torch.bincount(numbers, minlength=count).unique()) > 1:
        return None
    return values.flatten()[numbers.argsort(stable=True)].reshape(count, -1).T
