"""Units of a module: which modules have them, where their parameters are, and how the module computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.config.errors import UserError, did_you_mean

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def has_units(module: nn.Module) -> bool:
    """Whether the module has units that can be reinitialized individually.

    A unit is an output row of a Linear, a column of transformers' ``Conv1D`` (a Linear with a transposed weight), a
    filter of a Conv1d, Conv2d or Conv3d, or a feature of a one-dimensional affine LayerNorm. BatchNorm, GroupNorm and
    Embedding have no units: their entries belong to the units of a neighbouring layer.
    """
    if isinstance(module, nn.LayerNorm):
        return module.elementwise_affine and len(module.normalized_shape) == 1
    return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is transformers' ``Conv1D``: a Linear whose weight is stored as [in, out]."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and isinstance(bias, Tensor)
        and weight.ndim == 2
        and bias.shape == weight.shape[1:]
    )


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes x·Wᵀ + b, however it stores W."""
    return isinstance(module, nn.Linear) or is_transposed_linear(module)


def modules_with_units(module: nn.Module) -> dict[nn.Module, str]:
    """Every submodule with units and its qualified name, in registration order."""
    return {child: name for name, child in module.named_modules() if has_units(child)}


def output_layers(module: nn.Module, outputs: Sequence[str]) -> tuple[str, ...]:
    """Names of the output layers: ``outputs`` if there are any, otherwise the module with units registered last."""
    return tuple(outputs) or tuple(name for name, child in module.named_modules() if has_units(child))[-1:]


def checked_outputs(module: nn.Module, outputs: Sequence[str]) -> tuple[str, ...]:
    """Check the names of output layers that a user has given.

    Raises:
        UserError: A name is not a layer with units of this network.
    """
    names = list(modules_with_units(module).values())
    for name in outputs:
        if name not in names:
            raise UserError(f"outputs: this network has no layer '{name}'{did_you_mean(name, names)}")
    return tuple(outputs)


def tied_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that several submodules own, such as a weight shared by an output layer and an embedding.

    Changing them for one owner changes the other, so methods that act on single layers leave them alone.
    """
    owners = Counter(p for child in module.modules() for p in child._parameters.values())  # fast: runs at every update
    return {parameter for parameter, count in owners.items() if parameter is not None and count > 1}


def unit_axis(module: nn.Module) -> int:
    """The axis of the units in the output of the module, and of the features in its input."""
    return 1 if isinstance(module, CONVOLUTIONS) else -1


def units_first(module: nn.Module, tensor: Tensor) -> Tensor:
    """A view of a parameter of the module, or of a tensor of its shape, whose first axis is the units. [H, ...]."""
    return tensor.mT if tensor.ndim == 2 and is_transposed_linear(module) else tensor


def unit_weight(module: nn.Module) -> Tensor:
    """The weight with one row per unit, [H, in, …] or [H] for a LayerNorm; writing into it changes the parameter."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return units_first(module, weight)


def unit_parameters(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Detached weight, with one row per unit, and bias, which share memory with the parameters."""
    bias = getattr(module, "bias", None)
    return unit_weight(module).detach(), bias.detach() if isinstance(bias, Tensor) else None


def unit_count(module: nn.Module) -> int:
    """The number of units H of the module."""
    return len(unit_weight(module))


def unit_rows(module: nn.Module, values: Tensor) -> Tensor:
    """Reshape inputs or outputs of the module to one row per sample, token or position.

    Args:
        module: A module with units.
        values: Its input or output, or a gradient of that shape.

    Returns:
        [rows, H] or [rows, in]
    """
    return values.movedim(unit_axis(module), -1).flatten(0, -2)  # [B, H, y, x] -> [B·y·x, H]


def apply_module(module: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the output of the module with the given parameters instead of its own; no hooks run.

    Args:
        module: A module with units.
        inputs: Its input.
        weight: A weight with one row per unit, as :func:`unit_weight` returns it.
        bias: A bias, or None.
    """
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, CONVOLUTIONS):
        return module._conv_forward(inputs, weight, bias)
    return F.linear(inputs, weight, bias)


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward functions of these modules inside the block."""
    before = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for module, own in before.items():
            module.__dict__["forward"] = own
