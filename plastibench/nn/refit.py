"""Refit the readers of changed units so that the network keeps its outputs (paper 3.4 and Alg. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.batches import CHUNK_SIZE, chunks
from plastibench.nn.computed_weights import copied
from plastibench.nn.least_squares import Fit, Solver, fit_for
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.optimizer_state import clear_state
from plastibench.nn.reinit import broadcast_rows
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import apply_module

_ROUNDING = 1e-5  # relative to the norm of a parameter


def snapshot(layers: Iterable[TracedLayer]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Copy the weight and bias of each layer."""
    return {layer.name: _parameters(layer.module, clone=True) for layer in layers}


def frozen_copy(network: Network) -> nn.Module:
    """A copy of the network's module without gradients."""
    return copied(network.module).requires_grad_(False)


@torch.no_grad()
def refit_in_one_pass(
    network: Network,
    batch: TensorDictBase,
    layers: list[TracedLayer],
    before: dict[str, tuple[Tensor, Tensor | None]],
    revived: dict[str, Tensor],
    refitted: Callable[[str], bool],
    solver: Solver,
) -> dict[str, Fit]:
    """Refit all layers but the first, in execution order, in a single forward pass.

    The batch is duplicated. The first half passes through the old parameters, the second half through the new ones.
    When the pass reaches a layer, the layer is refitted to map the inputs of the second half to the outputs of the
    first half. So each layer runs once, and memory is that of an evaluation of twice the batch.

    All targets come from the original network (global targets), so each refit also corrects the drift of the layers
    before it. Frozen layers are not refitted. Parameters outside of these layers (position embeddings, BatchNorm) are
    used for both halves, so they must not have changed.

    Args:
        network: The network with reinitialized units; changed in place.
        batch: Representative batch.
        layers: Its layers with units, in execution order.
        before: Their parameters before the reinitialization, from :func:`snapshot`.
        revived: Layer name to mask [H] of units that keep their reinitialized parameters.
        refitted: Whether to refit the layer of a given name.
        solver: Solver for the linear systems.

    Returns:
        The fit of each refitted layer.
    """
    fits: dict[str, Fit] = {}
    first = layers[0].name

    def run(layer: TracedLayer, inputs: Tensor) -> Tensor:
        old_inputs, new_inputs = inputs.chunk(2)
        targets = apply_module(layer.module, old_inputs, *before[layer.name])
        wanted = layer.name not in fits and layer.name != first and layer.trained and refitted(layer.name)
        fit = fit_for(layer.module) if wanted else None
        if fit is not None:
            fit.add(new_inputs, targets)
            fits[layer.name] = fit.solve(solver, revived.get(layer.name))
            write_fit(network, layer, fits[layer.name], keep=revived.get(layer.name))
        outputs = apply_module(layer.module, new_inputs, *_parameters(layer.module))
        return torch.cat([targets, outputs])

    doubled = torch.cat([batch, batch])
    with as_evaluated(network.module), _replaced_forwards(layers, run):
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
    """Refit one layer to reproduce the outputs of the same layer in ``teacher``, one chunk of the batch at a time.

    Args:
        network: The network; ``reader`` is changed in place.
        batch: Representative batch.
        teacher: A module of the same architecture that provides the targets.
        reader: The layer to refit.
        solver: Solver for the linear system.
        keep: Mask [H] of units of the reader that keep their parameters.

    Returns:
        The fit, or None if the layer has no closed form.
    """
    fit = fit_for(reader.module)
    if fit is None:
        return None
    target_module = teacher.get_submodule(reader.name)
    with as_evaluated(network.module), as_evaluated(teacher):
        for chunk in chunks(batch, CHUNK_SIZE):
            old_inputs = _input_of(target_module, teacher, network, chunk)
            targets = apply_module(target_module, old_inputs, *_parameters(target_module))
            fit.add(_input_of(reader.module, network.module, network, chunk), targets)
    solution = fit.solve(solver, keep)
    write_fit(network, reader, solution, keep)
    return solution


def only_units_differ(network: Network, teacher: nn.Module, layers: list[TracedLayer]) -> bool:
    """Whether network and teacher agree in all parameters and buffers outside of the given layers."""
    own = {f"{layer.name}.{name}" for layer in layers for name, _ in layer.module.named_parameters(recurse=False)}
    others = teacher.state_dict()
    return all(
        torch.equal(value, others[name]) for name, value in network.module.state_dict().items() if name not in own
    )


@torch.no_grad()
def write_fit(network: Network, layer: TracedLayer, fit: Fit, keep: Tensor | None) -> None:
    """Write a fit into its layer, except for the units in ``keep``, and clear the optimizer state of the layer.

    Does nothing if the fit changes the parameters by rounding errors only, as when no layer before it has changed.
    """
    moved = False
    for parameter, new in zip(_parameters(layer.module), (fit.weight, fit.bias), strict=True):
        if parameter is None or new is None:
            continue
        new = new.to(parameter.dtype)
        new = new if keep is None else torch.where(broadcast_rows(keep, parameter), parameter, new)
        if float((new - parameter).norm()) > _ROUNDING * float(parameter.norm()):
            parameter.copy_(new)
            moved = True
    if moved:
        clear_state(network.optimizer, list(layer.module.parameters(recurse=False)))


def _parameters(module: nn.Module, clone: bool = False) -> tuple[Tensor, Tensor | None]:
    weight, bias = module.weight.detach(), getattr(module, "bias", None)  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    bias = bias.detach() if isinstance(bias, Tensor) else None
    if clone:
        return weight.clone(), None if bias is None else bias.clone()
    return weight, bias


@contextmanager
def _replaced_forwards(layers: list[TracedLayer], run: Callable[[TracedLayer, Tensor], Tensor]) -> Iterator[None]:
    """Compute the outputs of these layers with ``run`` inside the block."""
    try:
        for layer in layers:
            layer.module.forward = lambda inputs, layer=layer: run(layer, inputs)
        yield
    finally:
        for layer in layers:
            layer.module.__dict__.pop("forward", None)


class _Reached(Exception):
    """Ends a forward pass at the layer of interest."""


def _input_of(target: nn.Module, module: nn.Module, network: Network, batch: TensorDictBase) -> Tensor:
    """The input of the submodule ``target`` when ``module`` runs on the batch; the pass ends there."""
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
    return inputs[0]
