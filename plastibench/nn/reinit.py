"""Reinitialize units in place: incoming weights, BatchNorm entries, outgoing weights, and their optimizer state.

Parameters are written with ``copy_`` and ``masked_fill_``. Boolean indexing returns a copy, and writing into that copy
silently has no effect; several published ReDo ports have this bug.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import MomentRule, reset_state
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count, unit_weight, units_first


def broadcast_rows(mask: Tensor, like: Tensor) -> Tensor:
    """Reshape a mask over rows so that it broadcasts to a parameter: [H] -> [H, 1, …]."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def broadcast_columns(mask: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """Return a mask over the weight of a reader, True where it reads a masked unit; broadcasts to the weight.

    Args:
        mask: Mask over the units of the layer that is read. [H]
        weight: The weight of the reader with one row per unit, [out, in, …].
        columns: The unit that each input column of the reader holds, from :class:`TracedLayer`. [in]
    """
    return mask[columns.to(mask.device)].reshape(1, -1, *[1] * (weight.ndim - 2))


@torch.no_grad()
def reinitialize_units(
    network: Network, layers: list[TracedLayer], masks: dict[str, Tensor], fresh: nn.Module, rule: MomentRule
) -> int:
    """Copy the incoming weights and biases of the masked units from ``fresh``.

    Args:
        network: The network; its trained parameters are changed in place, together with their optimizer state.
        layers: Its layers with units.
        masks: Layer name to boolean [H], True where a unit is reinitialized.
        fresh: A newly initialized module of the same architecture.
        rule: How to reset the optimizer moments.

    Returns:
        The number of scalars that were replaced.
    """
    sources = dict(fresh.named_modules())
    changed = 0
    for layer in layers:
        mask = masks.get(layer.name)
        if mask is None or not bool(mask.any()):
            continue
        for name, parameter in layer.module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            # views with one row per unit; of most modules the parameter itself
            new, view = (units_first(layer.module, p) for p in (sources[layer.name].get_parameter(name), parameter))
            rows = broadcast_rows(mask, view)
            view.copy_(torch.where(rows, new, view))
            reset_state(network.optimizer, parameter, units_first(layer.module, rows), rule)
            changed += int(mask.sum()) * view[0].numel()
    return changed


@torch.no_grad()
def reinitialize_batch_norms(
    network: Network, layers: list[TracedLayer], masks: dict[str, Tensor], fresh: nn.Module, rule: MomentRule
) -> None:
    """Copy the BatchNorm scale, shift and running statistics of the masked units from ``fresh``."""
    for layer in layers:
        mask = masks.get(layer.name)
        if mask is None:
            continue
        for prefix in layer.batch_norms:
            norm, source = network.module.get_submodule(prefix), fresh.get_submodule(prefix)
            for name, parameter in norm.named_parameters(recurse=False):
                parameter.copy_(torch.where(mask, source.get_parameter(name), parameter))
                reset_state(network.optimizer, parameter, mask, rule)
            for name, buffer in norm.named_buffers(recurse=False):
                if buffer.shape == mask.shape:  # skips num_batches_tracked
                    buffer.copy_(torch.where(mask, source.get_buffer(name), buffer))


@torch.no_grad()
def zero_outgoing(network: Network, layers: list[TracedLayer], masks: dict[str, Tensor], rule: MomentRule) -> None:
    """Set the outgoing weights of the masked units to zero, and reset the optimizer moments of these weights."""
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        mask = masks.get(layer.name)
        if mask is None or not bool(mask.any()):
            continue
        for reader, columns in layer.outgoing.items():
            module = by_name[reader].module if reader in by_name else None
            if module is not None and isinstance(module.weight, nn.Parameter):
                view = unit_weight(module)
                masked = broadcast_columns(mask, view, columns)
                view.masked_fill_(masked, 0.0)
                reset_state(network.optimizer, module.weight, units_first(module, masked), rule)


def include_normalized_layers(layers: list[TracedLayer], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Extend the masks of LayerNorms to the layers whose output they normalize.

    A unit and its entry in the LayerNorm form one neuron, so both are reinitialized together.

    Args:
        layers: The layers with units of the network.
        masks: Layer name to boolean [H].
    """
    modules = {layer.name: layer.module for layer in layers}
    found = dict(masks)
    for layer in layers:
        for reader in layer.readers:
            normalized = reader in masks and isinstance(modules[reader], nn.LayerNorm) and not layer.activated
            if normalized and len(masks[reader]) == unit_count(layer.module):
                found[layer.name] = masks[reader]
    return found
