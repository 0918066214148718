"""Refit the readers of changed units so that the network keeps its outputs (paper 3.4 and Alg. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.batches import CHUNK_SIZE, chunks
from plastibench.nn.computed_weights import copied
from plastibench.nn.fitted_parameters import fitted_parameters, write_parameters
from plastibench.nn.least_squares import Fit, Solver, fit_for
from plastibench.nn.memory import MemoryPlan
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.parameters import saved_tensors
from plastibench.nn.refit_streamed import refit_streamed
from plastibench.nn.row_order import RowOrder, RowsMoved, moving_layers
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import apply_module, replaced_forwards, unit_parameters
from plastibench.utils.notices import print_once


def snapshot(layers: Iterable[TracedLayer]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Copy the weight, with one row per unit, and the bias of each layer."""
    copies = {}
    for layer in layers:
        weight, bias = unit_parameters(layer.module)
        copies[layer.name] = weight.clone(), None if bias is None else bias.clone()
    return copies


def frozen_copy(network: Network) -> nn.Module:
    """A copy of the network's module without gradients."""
    return copied(network.module).requires_grad_(False)


def announce(method: str, order: RowOrder) -> None:
    """Print once per process that the rows of a network move, and how it is therefore refitted."""
    if note := order.note():
        print_once(f"plastibench: {method}: {note}")


@torch.no_grad()
def refit(
    network: Network,
    batch: TensorDictBase,
    layers: list[TracedLayer],
    before: dict[str, tuple[Tensor, Tensor | None]],
    revived: dict[str, Tensor],
    refitted: Callable[[str], bool],
    solver: Solver,
    order: RowOrder,
    plan: MemoryPlan,
) -> dict[str, Fit]:
    """Refit all layers except the first, in execution order.

    If the rows allow it, old and new activations are computed together: in one pass, or streamed in chunks if one pass
    would need too much memory. Otherwise, the layers are refitted pair by pair. All ways give the same result up to
    rounding. Layers whose rows depend on routing are not refitted, because the same row can hold different tokens in
    the changed and in the original network.

    Args:
        network: The network with reinitialized units; changed in place.
        batch: Representative batch.
        layers: Its layers with units, in execution order.
        before: Their parameters before the reinitialization, from :func:`snapshot`.
        revived: Layer name to mask [H] of units that keep their reinitialized parameters.
        refitted: Whether to refit the layer of a given name.
        solver: Solver for the linear systems.
        order: What :func:`plastibench.nn.row_order.row_order` found before the network was changed.
        plan: What :func:`plastibench.nn.memory.refit_plan` has chosen.

    Returns:
        The fit of each refitted layer.
    """
    moving = order.moving
    if order.one_pass:
        arguments = network, batch, layers, before, revived, refitted, solver, order
        try:
            return refit_streamed(*arguments, plan.chunk) if plan.streamed else refit_in_one_pass(*arguments)
        except RowsMoved as error:  # nothing has been written yet
            moving = moving_layers(network, batch, layers) | {str(error)}
    teacher = frozen_copy(network)
    for layer in layers:
        for parameter, old in zip(unit_parameters(teacher.get_submodule(layer.name)), before[layer.name], strict=True):
            if parameter is not None and old is not None:
                parameter.copy_(old)
    fits: dict[str, Fit] = {}
    for reader in layers[1:]:
        if refitted(reader.name) and reader.trained and reader.name not in moving:
            fit = refit_pair(network, batch, teacher, reader, solver, revived.get(reader.name), plan.chunk)
            if fit is not None:
                fits[reader.name] = fit
    return fits


@torch.no_grad()
def refit_in_one_pass(
    network: Network,
    batch: TensorDictBase,
    layers: list[TracedLayer],
    before: dict[str, tuple[Tensor, Tensor | None]],
    revived: dict[str, Tensor],
    refitted: Callable[[str], bool],
    solver: Solver,
    order: RowOrder | None = None,
) -> dict[str, Fit]:
    """Refit all layers except the first, in execution order, in a single forward pass.

    The batch is duplicated. The first half passes through the old parameters, the second half through the new ones.
    When the pass reaches a layer, the layer is refitted to map the inputs of the second half to the outputs of the
    first half. Each layer therefore runs once, and the memory is that of evaluating twice the batch. Nothing is written
    before the pass is complete.

    All targets come from the original network (global targets), so each refit also corrects the drift of the layers
    before it. Frozen layers are not refitted. Parameters outside of these layers (position embeddings, BatchNorm) are
    used for both halves, so they must not have changed. The arguments are those of :func:`refit`.

    Raises:
        RowsMoved: A layer received a different number of rows than in the test of the row order.
    """
    fits: dict[str, Fit] = {}
    new: dict[str, tuple[Tensor, Tensor | None]] = {}
    calls = dict.fromkeys(before, 0)
    first = layers[0].name
    doubled = torch.cat([batch, batch])

    def run(layer: TracedLayer, inputs: Tensor) -> Tensor:
        if order is not None:
            order.check(layer, calls[layer.name], inputs.shape[layer.batch_axis], len(doubled))
        calls[layer.name] += 1
        old_inputs, new_inputs = inputs.chunk(2, layer.batch_axis)
        targets = apply_module(layer.module, old_inputs, *before[layer.name])
        wanted = layer.name not in fits and layer.name != first and layer.trained and refitted(layer.name)
        fit = fit_for(layer.module) if wanted and inputs.numel() else None
        if fit is not None:
            keep = revived.get(layer.name)
            fit.add(new_inputs, targets)
            fits[layer.name] = fit.solve(solver, keep)
            new[layer.name] = fitted_parameters(layer, fits[layer.name], keep)
        outputs = apply_module(layer.module, new_inputs, *new.get(layer.name, unit_parameters(layer.module)))
        return torch.cat([targets, outputs], layer.batch_axis)

    with as_evaluated(network.module), replaced_forwards({layer.module: partial(run, layer) for layer in layers}):
        network.loss(network.module, doubled)
    for layer in layers:
        if layer.name in new:
            write_parameters(network, layer, new[layer.name])
    return fits


@torch.no_grad()
def refit_pair(
    network: Network,
    batch: TensorDictBase,
    teacher: nn.Module,
    reader: TracedLayer,
    solver: Solver,
    keep: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Fit | None:
    """Refit one layer to reproduce the outputs of the same layer in ``teacher``, one chunk of the batch at a time.

    Args:
        network: The network; ``reader`` is changed in place.
        batch: Representative batch.
        teacher: A module of the same architecture that provides the targets.
        reader: The layer to refit.
        solver: Solver for the linear system.
        keep: Mask [H] of units of the reader that keep their parameters.
        chunk_size: Samples per forward pass.

    Returns:
        The fit, or None if the layer has no closed form or did not run.
    """
    fit = fit_for(reader.module)
    if fit is None:
        return None
    target_module, rows = teacher.get_submodule(reader.name), 0
    with as_evaluated(network.module), as_evaluated(teacher):
        for chunk in chunks(batch, chunk_size):
            old_inputs = _input_of(target_module, teacher, network, chunk)
            new_inputs = _input_of(reader.module, network.module, network, chunk)
            if old_inputs is None or new_inputs is None or old_inputs.shape != new_inputs.shape:
                continue  # a branch that did not run, or ran with different rows
            fit.add(new_inputs, apply_module(target_module, old_inputs, *unit_parameters(target_module)))
            rows += new_inputs.numel()
    if not rows:
        return None
    solution = fit.solve(solver, keep)
    write_parameters(network, reader, fitted_parameters(reader, solution, keep))
    return solution


def only_units_differ(network: Network, teacher: nn.Module, layers: list[TracedLayer]) -> bool:
    """Whether network and teacher agree in all parameters and buffers outside of the given layers."""
    own = {f"{layer.name}.{name}" for layer in layers for name, _ in layer.module.named_parameters(recurse=False)}
    others = saved_tensors(teacher)
    return all(
        torch.equal(value, others[name]) for name, value in saved_tensors(network.module).items() if name not in own
    )


class _Reached(Exception):
    """Ends a forward pass at the layer of interest."""


def _input_of(target: nn.Module, module: nn.Module, network: Network, batch: TensorDictBase) -> Tensor | None:
    """The first input of the submodule ``target`` when ``module`` runs on the batch; None if it does not run."""
    inputs: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])
        raise _Reached

    hook = target.register_forward_pre_hook(stop)
    try:
        network.loss(module, batch)
    except _Reached:
        pass
    finally:
        hook.remove()
    return inputs[0] if inputs else None
