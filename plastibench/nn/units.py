"""Units of a module: what a neuron is, where its parameters are, and how the module computes."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

UnitModule: TypeAlias = nn.Linear | nn.Conv2d | nn.LayerNorm


def has_units(module: nn.Module) -> bool:
    """Whether the module's neurons can be re-drawn one by one.

    A unit is an output row of a Linear, a filter of a Conv2d, a feature of a one-dimensional affine LayerNorm.
    BatchNorm, GroupNorm and Embedding are left alone: their entries belong to a neighbour's units.
    """
    if isinstance(module, nn.LayerNorm):
        return module.elementwise_affine and len(module.normalized_shape) == 1
    return isinstance(module, nn.Linear | nn.Conv2d)


def tied(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that several modules own, as an output layer its weight with an embedding.

    What changes them for the sake of one owner changes the other, so methods that work on layers leave them alone.
    """
    owners = Counter(p for child in module.modules() for p in child._parameters.values())  # asked for at every update
    return {parameter for parameter, count in owners.items() if parameter is not None and count > 1}


def unit_count(module: nn.Module) -> int:
    """The number of units H of the module."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def unit_rows(module: nn.Module, values: Tensor) -> Tensor:
    """Outputs of the module as one row per sample, token or position.

    Args:
        module: A module with units.
        values: Its output, or a gradient of that shape.

    Returns:
        [rows, H]
    """
    if isinstance(module, nn.Conv2d):
        return values.movedim(1, -1).flatten(0, -2)  # [B, H, y, x] -> [B·y·x, H]
    return values.flatten(0, -2)


def apply_module(module: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the module would compute with other parameters; no hook fires."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(inputs, weight, bias)
    return F.linear(inputs, weight, bias)
