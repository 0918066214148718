"""In-place surgery on weights.

Every write goes through ``copy_`` or ``masked_fill_`` on the parameter itself: boolean indexing returns a copy, and
writing into that copy is the silent no-op of several published ReDo ports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plastibench.nn.dataflow import TracedLayer
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import MomentRule, forget
from plastibench.nn.units import unit_count


def broadcast_rows(mask: Tensor, like: Tensor) -> Tensor:
    """A mask over rows, shaped to broadcast over a parameter: [H] -> [H, 1, …]."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))


@torch.no_grad()
def redraw_units(
    network: Network, units: list[TracedLayer], masks: dict[str, Tensor], fresh: nn.Module, rule: MomentRule
) -> int:
    """Give the masked units the incoming weights and biases that they have in ``fresh``; return how many scalars.

    Args:
        network: The network, changed in place together with its optimizer's state.
        units: Its modules with units.
        masks: Module name to boolean [H], True where a unit is re-drawn.
        fresh: A module of the same architecture, newly initialised.
        rule: What becomes of the optimizer's moments.
    """
    sources = dict(fresh.named_modules())
    changed = 0
    for unit in units:
        mask = masks.get(unit.name)
        if mask is None or not bool(mask.any()):
            continue
        for name, parameter in unit.module.named_parameters(recurse=False):
            rows = broadcast_rows(mask, parameter)
            new = sources[unit.name].get_parameter(name)
            parameter.copy_(torch.where(rows, new, parameter))
            forget(network.optimizer, parameter, rows, rule)
            changed += int(mask.sum()) * parameter[0].numel()
    return changed


@torch.no_grad()
def redraw_batch_norms(
    network: Network, units: list[TracedLayer], masks: dict[str, Tensor], fresh: nn.Module, rule: MomentRule
) -> None:
    """Give the masked units the scale, shift and statistics that their BatchNorms have in ``fresh``."""
    for unit in units:
        mask = masks.get(unit.name)
        if mask is None:
            continue
        for prefix in unit.batch_norms:
            norm, source = network.module.get_submodule(prefix), fresh.get_submodule(prefix)
            for name, parameter in norm.named_parameters(recurse=False):
                parameter.copy_(torch.where(mask, source.get_parameter(name), parameter))
                forget(network.optimizer, parameter, mask, rule)
            for name, buffer in norm.named_buffers(recurse=False):
                if buffer.shape == mask.shape:  # not the count of batches
                    buffer.copy_(torch.where(mask, source.get_buffer(name), buffer))


@torch.no_grad()
def zero_outgoing(network: Network, units: list[TracedLayer], masks: dict[str, Tensor], rule: MomentRule) -> None:
    """Zero the weights by which other modules read the masked units (their optimizer moments too)."""
    by_name = {unit.name: unit for unit in units}
    for unit in units:
        mask = masks.get(unit.name)
        if mask is None or not bool(mask.any()):
            continue
        for reader, places in unit.outgoing.items():
            weight = by_name[reader].module.weight if reader in by_name else None
            if isinstance(weight, nn.Parameter):
                columns = reading_columns(mask, weight, places)
                weight.masked_fill_(columns, 0.0)
                forget(network.optimizer, weight, columns, rule)


def whole_neurons(units: list[TracedLayer], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks, and with those of a LayerNorm the same ones of the module whose outputs it normalises."""
    modules = {unit.name: unit.module for unit in units}
    found = dict(masks)
    for unit in units:
        for reader in unit.readers:
            normed = reader in masks and isinstance(modules[reader], nn.LayerNorm) and not unit.activated
            if normed and len(masks[reader]) == unit_count(unit.module):
                found[unit.name] = masks[reader]
    return found


def reading_columns(mask: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """Mask over a reader's weight, True where it reads a masked unit; broadcasts to the weight.

    Args:
        mask: Units of the module that is read. [H]
        weight: The reader's weight, [out, in, …].
        columns: Which unit each input column of the reader holds, as :class:`TracedLayer` knows it. [in]
    """
    return mask[columns.to(mask.device)].reshape(1, -1, *[1] * (weight.ndim - 2))
