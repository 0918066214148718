"""Units of a module: which modules have them, where their parameters are, and how the module computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def has_units(module: nn.Module) -> bool:
    """Whether the units of the module can be reinitialized one by one.

    A unit is an output row of a Linear, a filter of a Conv2d, or a feature of a one-dimensional affine LayerNorm.
    BatchNorm, GroupNorm and Embedding have no units: their entries belong to the units of a neighbouring layer.
    """
    if isinstance(module, nn.LayerNorm):
        return module.elementwise_affine and len(module.normalized_shape) == 1
    return isinstance(module, nn.Linear | nn.Conv2d)


def modules_with_units(module: nn.Module) -> dict[nn.Module, str]:
    """Every submodule with units and its qualified name, in registration order."""
    return {child: name for name, child in module.named_modules() if has_units(child)}


def output_layers(module: nn.Module, outputs: Sequence[str]) -> tuple[str, ...]:
    """Names of the output layers: ``outputs`` if there are any, otherwise the module with units registered last."""
    return tuple(outputs) or tuple(name for name, child in module.named_modules() if has_units(child))[-1:]


def tied_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that several submodules own, as a weight shared by an output layer and an embedding.

    Changing them for one owner changes the other, so methods that act on single layers leave them alone.
    """
    owners = Counter(p for child in module.modules() for p in child._parameters.values())  # fast: runs at every update
    return {parameter for parameter, count in owners.items() if parameter is not None and count > 1}


def unit_count(module: nn.Module) -> int:
    """The number of units H of the module."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def unit_rows(module: nn.Module, values: Tensor) -> Tensor:
    """Reshape outputs of the module to one row per sample, token or spatial position.

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
    """Compute the output of the module with the given parameters instead of its own; no hooks run."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(inputs, weight, bias)
    return F.linear(inputs, weight, bias)
