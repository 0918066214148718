"""What becomes of optimizer state when parts of a parameter are re-drawn.

Adam keeps one step count for a whole tensor, so re-drawing some rows leaves no exact choice (measured with betas
0.9/0.999 and a constant gradient):

- ``zero``: both moments of the part become 0 and the count stays (Dopamine's ReDo). The revived part first moves by
  3.2 learning rates, at most by 6.6, because its second moment lags behind.
- ``mean``: the first moment becomes 0, the second becomes its mean over the rest of the tensor. No spike, no slow-down
  of healthy rows; the default.
- ``restart``: as ``zero``, and the tensor's step count starts again, which slows its healthy rows at first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

MomentRule = Literal["mean", "zero", "restart"]
_SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")


@torch.no_grad()
def forget(
    optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter, changed: Tensor, rule: MomentRule = "mean"
) -> None:
    """Reset the state of the changed part of a parameter, in place.

    Args:
        optimizer: The optimizer, or None (nothing to do).
        parameter: A parameter, which the optimizer may or may not own.
        changed: Boolean mask that broadcasts to the parameter's shape; True where its values were re-drawn.
        rule: See the module's description.
    """
    state = optimizer.state.get(parameter) if optimizer is not None else None
    if not state:
        return
    changed = changed.expand_as(parameter)
    everything = bool(changed.all())
    for name, value in [*state.items()]:
        if not isinstance(value, Tensor):
            if name == "step" and (rule == "restart" or everything):
                state[name] = type(value)(0)
        elif value.shape == parameter.shape and value.ndim:
            if rule == "mean" and name in _SQUARED and not everything:
                value[changed] = value[~changed].mean()
            else:
                value[changed] = 0
        elif name == "step" and (rule == "restart" or everything):
            value.zero_()
        elif name == "mu_product" and (rule == "restart" or everything):  # NAdam's product over steps
            value.fill_(1.0)


def forget_all(optimizer: torch.optim.Optimizer | None, parameters: list[nn.Parameter]) -> None:
    """Drop the whole state of these parameters, as if the optimizer had never stepped on them."""
    if optimizer is not None:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
