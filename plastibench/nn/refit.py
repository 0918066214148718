"""Refit the readers of changed units so that the network returns what it returned before (paper 3.4 and Alg. 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.dataflow import TracedLayer
from plastibench.nn.least_squares import Fit, Solver, fit_for
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.optimizer_state import forget_all
from plastibench.nn.reinit import broadcast_rows
from plastibench.nn.unit_statistics import PIECE, pieces
from plastibench.nn.units import apply_module

_ROUNDING = 1e-5  # of a parameter's norm


def snapshot(units: Iterable[TracedLayer]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Copies of weight and bias of each module."""
    return {unit.name: _parameters(unit.module, clone=True) for unit in units}


@torch.no_grad()
def refit_in_one_pass(
    network: Network,
    batch: TensorDictBase,
    units: list[TracedLayer],
    before: dict[str, tuple[Tensor, Tensor | None]],
    revived: dict[str, Tensor],
    refitted: Callable[[str], bool],
    solver: Solver,
) -> dict[str, Fit]:
    """Refit every module but the first, in execution order, in a single forward pass.

    The batch is doubled. Through the first half every module computes with its old parameters, through the second
    with its new ones; each module is refitted when the pass reaches it, from the inputs that the second half brings to
    the outputs of the first. So no module runs twice, and there are no more activations than in an evaluation of twice
    the batch. Frozen modules stay as they are. The targets are those of the original network throughout (global
    targets), which lets each reader repair what drifted before it. What belongs to no unit (position embeddings,
    BatchNorm) serves both halves, so the surgery must have left it alone.

    Args:
        network: The network after surgery; changed in place.
        batch: Representative batch.
        units: Its modules with units, in execution order.
        before: Their parameters before the surgery, from :func:`snapshot`.
        revived: Module name to mask [H] of units that keep what the surgery gave them.
        refitted: Which modules to refit, by name.
        solver: For the linear systems.

    Returns:
        The fit of each refitted module.
    """
    fits: dict[str, Fit] = {}
    first = units[0].name

    def run(unit: TracedLayer, inputs: Tensor) -> Tensor:
        old_inputs, new_inputs = inputs.chunk(2)
        targets = apply_module(unit.module, old_inputs, *before[unit.name])
        wanted = unit.name not in fits and unit.name != first and unit.trained and refitted(unit.name)
        fit = fit_for(unit.module) if wanted else None
        if fit is not None:
            fit.add(new_inputs, targets)
            fits[unit.name] = fit.solve(solver, revived.get(unit.name))
            write(network, unit, fits[unit.name], keep=revived.get(unit.name))
        outputs = apply_module(unit.module, new_inputs, *_parameters(unit.module))
        return torch.cat([targets, outputs])

    doubled = torch.cat([batch, batch])
    with as_evaluated(network.module), _forwards(units, run):
        network.loss(network.module, doubled)
    return fits


@torch.no_grad()
def refit_pair(
    network: Network,
    batch: TensorDictBase,
    teacher: nn.Module,
    reader: TracedLayer,
    solver: Solver,
    keep: Tensor | None = None,
) -> Fit | None:
    """Refit one module to the outputs that ``teacher`` returns at the same place, streaming the batch in pieces.

    Args:
        network: The network; ``reader`` is changed in place.
        batch: Representative batch.
        teacher: A network of the same architecture whose outputs are the targets.
        reader: The module to refit.
        solver: For the linear system.
        keep: Mask [H] of units of the reader that stay as they are.
    """
    fit = fit_for(reader.module)
    if fit is None:
        return None
    taught = teacher.get_submodule(reader.name)
    with as_evaluated(network.module), as_evaluated(teacher):
        for part in pieces(batch, PIECE):
            old_inputs = _input_of(teacher, taught, network, part)
            targets = apply_module(taught, old_inputs, *_parameters(taught))
            fit.add(_input_of(network.module, reader.module, network, part), targets)
    solution = fit.solve(solver, keep)
    write(network, reader, solution, keep)
    return solution


def only_units_differ(network: Network, teacher: nn.Module, units: list[TracedLayer]) -> bool:
    """Whether network and teacher agree in all parameters and buffers that belong to no module with units."""
    own = {f"{unit.name}.{name}" for unit in units for name, _ in unit.module.named_parameters(recurse=False)}
    others = teacher.state_dict()
    return all(
        torch.equal(value, others[name]) for name, value in network.module.state_dict().items() if name not in own
    )


def teacher_of(network: Network) -> nn.Module:
    """A frozen copy of the network as it is now."""
    return copy.deepcopy(network.module).requires_grad_(False)


@torch.no_grad()
def write(network: Network, unit: TracedLayer, fit: Fit, keep: Tensor | None) -> None:
    """Write a fit into its module, sparing the units in ``keep``; the module's optimizer state starts anew.

    A fit that moves nothing beyond rounding, as where nothing before the module was changed, leaves both.
    """
    moved = False
    for parameter, new in zip(_parameters(unit.module), (fit.weight, fit.bias), strict=True):
        if parameter is None or new is None:
            continue
        new = new.to(parameter.dtype)
        new = new if keep is None else torch.where(broadcast_rows(keep, parameter), parameter, new)
        if float((new - parameter).norm()) > _ROUNDING * float(parameter.norm()):
            parameter.copy_(new)
            moved = True
    if moved:
        forget_all(network.optimizer, list(unit.module.parameters(recurse=False)))


def _parameters(module: nn.Module, clone: bool = False) -> tuple[Tensor, Tensor | None]:
    weight, bias = module.weight.detach(), getattr(module, "bias", None)  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    bias = bias.detach() if isinstance(bias, Tensor) else None
    if clone:
        return weight.clone(), None if bias is None else bias.clone()
    return weight, bias


@contextmanager
def _forwards(units: list[TracedLayer], run: Callable[[TracedLayer, Tensor], Tensor]) -> Iterator[None]:
    """Have ``run`` compute the outputs of these modules inside the block."""
    try:
        for unit in units:
            unit.module.forward = lambda inputs, unit=unit: run(unit, inputs)
        yield
    finally:
        for unit in units:
            unit.module.__dict__.pop("forward", None)


class _Reached(Exception):
    """Ends a forward pass at the module of interest."""


def _input_of(module: nn.Module, place: nn.Module, network: Network, batch: TensorDictBase) -> Tensor:
    """What ``place`` receives when ``module`` runs on the batch; the pass ends there."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    hook = place.register_forward_pre_hook(stop)
    try:
        network.loss(module, batch)
    except _Reached:
        pass
    finally:
        hook.remove()
    return seen[0]
