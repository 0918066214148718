"""What every module hands on, row by row: for statistics that need more than means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.dataflow import Dataflow, TracedLayer
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.unit_statistics import pieces
from plastibench.nn.units import unit_count, unit_rows

Visit = Callable[[TracedLayer, Tensor], None]


@torch.no_grad()
def visit_activations(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer], visit: Visit) -> None:
    """Call ``visit(unit, h)`` for each piece of the batch, in eval mode and float32.

    ``h`` [rows, H] is what the nonlinearity behind a module makes of its output, and the output itself where none
    follows; a row is a sample, token or position.

    Args:
        network: The network; left as it was.
        batch: Probe batch.
        units: The modules to visit, from :func:`plastibench.nn.dataflow.trace`.
        visit: Must not keep ``h`` itself: an in-place function may write into it.
    """
    by_name = {unit.name: unit for unit in units}
    names = {unit.module: unit.name for unit in units}
    awaiting: set[str] = set()  # only the first nonlinearity after a run of the module makes h of its output

    def when_activated(name: str, output: Tensor, unit: Tensor) -> None:
        if name in awaiting:
            awaiting.discard(name)
            rows = _rows_by_unit(output, unit, unit_count(by_name[name].module))
            if rows is not None:
                visit(by_name[name], rows)

    def when_run(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        unit = by_name[names[module]]
        if unit.activated:
            awaiting.add(unit.name)
        else:
            visit(unit, unit_rows(module, output))

    hooks = [module.register_forward_hook(when_run) for module in names]
    try:
        with as_evaluated(network.module):
            for part in pieces(batch):
                with Dataflow(names, when_activated):
                    network.loss(network.module, part)
    finally:
        for hook in hooks:
            hook.remove()


def _rows_by_unit(values: Tensor, unit: Tensor, count: int) -> Tensor | None:
    """Values as [rows, H], given the number of the unit of each element; None where units differ in how many."""
    axes = [axis for axis, stride in enumerate(unit.stride()) if stride and unit.shape[axis] > 1]
    if len(axes) == 1 and unit.shape[axes[0]] == count:  # units still lie along one axis
        return values.movedim(axes[0], -1).flatten(0, -2)
    numbers = unit.flatten().long()
    if len(torch.bincount(numbers, minlength=count).unique()) > 1:
        return None
    return values.flatten()[numbers.argsort(stable=True)].reshape(count, -1).T
