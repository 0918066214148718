"""Reset optimizer state when part of a parameter is reinitialized.

Adam keeps one step count for an entire tensor, so no rule is exact when only some rows are reinitialized. Measured with
betas 0.9/0.999 and a constant gradient:

- ``mean`` (default): the first moment becomes 0, and the second becomes its mean over the rest of the tensor. No spike,
  and healthy rows do not slow down.
- ``zero``: both moments become 0 and the step count stays (Dopamine's ReDo). The reinitialized part first moves by 3.2
  learning rates and at most by 6.6, because its second moment lags behind.
- ``restart``: as ``zero``, and the step count of the tensor restarts, which slows its healthy rows at first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

MomentRule = Literal["mean", "zero", "restart"]
_SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")


@torch.no_grad()
def reset_state(
    optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter, changed: Tensor, rule: MomentRule = "mean"
) -> None:
    """Reset the optimizer state of the changed part of a parameter, in place.

    Args:
        optimizer: The optimizer, or None (nothing to do).
        parameter: A parameter, which the optimizer may or may not own.
        changed: Boolean mask that broadcasts to the shape of the parameter; True where it was reinitialized.
        rule: See the module docstring.
    """
    state = optimizer.state.get(parameter) if optimizer is not None else None
    if not state:
        return
    changed = changed.expand_as(parameter)
    all_changed = bool(changed.all())
    for name, value in [*state.items()]:
        if not isinstance(value, Tensor):
            if name == "step" and (rule == "restart" or all_changed):
                state[name] = type(value)(0)
        elif value.shape == parameter.shape and value.ndim:
            if rule == "mean" and name in _SQUARED and not all_changed:
                value[changed] = value[~changed].mean()
            else:
                value[changed] = 0
        elif name == "step" and (rule == "restart" or all_changed):
            value.zero_()
        elif name == "mu_product" and (rule == "restart" or all_changed):  # NAdam's product over steps
            value.fill_(1.0)


def clear_state(optimizer: torch.optim.Optimizer | None, parameters: list[nn.Parameter]) -> None:
    """Delete the optimizer state of these parameters, as if the optimizer had never stepped on them."""
    if optimizer is not None:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
