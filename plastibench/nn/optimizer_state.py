"""Reset optimizer state when part of a parameter is reinitialized.

Adam keeps one step count for an entire tensor, so no rule is exact when only some rows are reinitialized. The
following was measured with betas 0.9/0.999 and a constant gradient:

- ``mean`` (default): the first moment becomes 0, and the second becomes its mean over the rest of the tensor. No spike,
  and healthy rows do not slow down.
- ``zero``: both moments become 0 and the step count stays (Dopamine's ReDo). The reinitialized part first moves by 3.2
  learning rates and at most by 6.6, because its second moment lags behind.
- ``restart``: like ``zero``, but the step count of the tensor also restarts, which slows its healthy rows at first.

The meaning of a state entry follows from its name; see :func:`_role`. Copies of weights (schedule-free's ``z``,
Lookahead's slow weights, float32 weights of mixed precision) get the new weights, also if they are not part of the
optimizer's ``state``. If an entry has an unknown name or form (quantized, nested, flattened), all state of its
parameter is deleted. The optimizer then creates it again, and one line says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plastibench.utils.notices import print_once

MomentRule = Literal["mean", "zero", "restart"]
_Role = Literal["first", "second", "weight", "rate", "unknown"]

# Averages of gradients or updates, which start at 0: torch.optim, timm, schedulefree, Lion, Muon, Prodigy.
_FIRST = frozenset(
    [
        *("exp_avg", "exp_avg_slow", "exp_avg_diff", "grad_avg", "momentum_buffer", "momentum", "slow_momentum"),
        *("prev", "last_grad", "previous_grad", "neg_grad_or_diff", "neg_pre_grad"),
    ]
)
# Averages, sums or maxima of magnitudes, by which a step is divided or multiplied.
_SECOND = frozenset(
    [
        *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_avg_var", "max_exp_avg_var", "exp_inf", "sum"),
        *("acc_delta", "row_var", "col_var", "variance", "exp_hessian_diag_sq"),
    ]
)
# Copies of the weights: ASGD's average, and the slow weights of Lookahead (timm, pytorch-optimizer, others).
_WEIGHTS = frozenset(
    ["ax", "ema", "slow_buffer", "slow_param", "slow_params", "slow_weights", "lookahead_slow_buff", "cached_params"]
)
_ITERATES = frozenset("xyz")  # only in schedule-free optimizers; FTRL and others use these names for gradient sums
# Names of attributes that hold copies of weights, and not of gradients or other values of the same shapes.
_WEIGHT_LISTS = re.compile("(?!.*(grad|mom|mask|decay|sq|var))_*(slow|master|fp32|shadow|ema|cached)", re.IGNORECASE)
_NESTED = ("optimizer", "base_optimizer", "_base_optimizer", "base")  # in wrappers: Lookahead, SAM, schedule-free


@torch.no_grad()
def reset_state(
    optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter, changed: Tensor, rule: MomentRule = "mean"
) -> None:
    """Reset the optimizer state of the changed part of a parameter, in place.

    Args:
        optimizer: The optimizer, or None (nothing to do).
        parameter: A parameter, which the optimizer may or may not own; it already has its new values.
        changed: Boolean mask that broadcasts to the shape of the parameter; True where it was reinitialized.
        rule: See the module docstring.
    """
    changed = changed.expand_as(parameter)
    for _, copy in _copies(optimizer, [parameter]):
        copy.copy_(torch.where(changed, parameter.to(copy.dtype), copy))
    for each in nested(optimizer):
        if isinstance(each, torch.optim.LBFGS):
            if bool(changed.any()):
                clear_state(each, [parameter])
            continue
        state = each.state.get(parameter)
        if not state:
            continue
        roles = {name: _role(each, name, value, parameter) for name, value in state.items()}
        if "unknown" in roles.values():
            if bool(changed.any()):
                names = ", ".join(str(name) for name, role in roles.items() if role == "unknown")
                print_once(
                    f"plastibench: the state of {type(each).__name__} has unknown entries ({names}); if part of a "
                    "parameter is reinitialized, all optimizer state of this parameter is deleted"
                )
                each.state.pop(parameter)
            continue
        _reset_known(each, parameter, changed, rule, roles)


def has_copies(optimizer: Any) -> bool:
    """Whether an optimizer or a wrapper keeps tensors of all parameters outside of its ``state``."""
    return bool(_lists(optimizer))


def _copies(optimizer: Any, parameters: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parameters and the copies of their values that optimizer and wrappers keep outside of their ``state``."""
    wanted = {id(parameter) for parameter in parameters}
    while optimizer is not None:
        for name, pairs in _lists(optimizer).items():
            if _WEIGHT_LISTS.match(name):
                yield from ((parameter, copy) for parameter, copy in pairs if id(parameter) in wanted)
            else:
                print_once(
                    f"plastibench: {type(optimizer).__name__}.{name} holds tensors that interventions do not reset"
                )
        optimizer = next(_inner(optimizer), None)


def _lists(optimizer: Any) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Lists with one tensor per parameter, as pairs with the parameters: attributes, and state of no parameter."""
    owned = [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]
    state = getattr(optimizer, "state", {})
    values = vars(optimizer) | {name: value for name, value in state.items() if isinstance(name, str)}
    found = {}
    for name, value in values.items():
        tensors = _tensors(value) if name not in ("param_groups", "state") else []
        if tensors and [each.shape for each in tensors] == [p.shape for p in owned]:
            pairs = [*zip(owned, tensors, strict=True)]
            if not any(_is_same(*pair) for pair in pairs):
                found[name] = pairs
    return found


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one is other or one.data_ptr() == other.data_ptr()


def _tensors(value: Any) -> list[Tensor]:
    """Floating-point tensors of a list, or of a list of lists; empty if it holds anything else."""
    parts = [*value] if isinstance(value, list | tuple) else []
    parts = [each for part in parts for each in (part if isinstance(part, list | tuple) else [part])]
    return parts if all(isinstance(each, Tensor) and each.is_floating_point() for each in parts) else []


def clear_state(optimizer: torch.optim.Optimizer | None, parameters: list[nn.Parameter]) -> None:
    """Delete the optimizer state of these parameters, as if the optimizer had never stepped on them."""
    with torch.no_grad():
        for own, copy in _copies(optimizer, parameters):
            copy.copy_(own)
    for each in nested(optimizer):
        if isinstance(each, torch.optim.LBFGS):  # one history for all parameters, stored with the first
            owned = {id(p) for group in each.param_groups for p in group["params"]}
            if any(id(parameter) in owned for parameter in parameters):
                each.state.clear()
            continue
        for parameter in parameters:
            state = each.state.get(parameter, {})
            if isinstance(each, torch.optim.Adagrad) or "hessian step" in state or _wraps(each):  # never created again
                roles = {name: _role(each, name, value, parameter) for name, value in state.items()}
                everything = torch.ones_like(parameter, dtype=torch.bool)
                _reset_known(each, parameter, everything, "restart", roles)
            else:
                each.state.pop(parameter, None)


def nested(optimizer: torch.optim.Optimizer | None) -> Iterator[torch.optim.Optimizer]:
    """Return the optimizer and the ones that it wraps (Lookahead, SAM, …), without wrappers that only forward state."""
    while optimizer is not None:
        inner = next(_inner(optimizer), None)
        if hasattr(optimizer, "state") and (inner is None or inner.state is not optimizer.state):
            yield optimizer
        optimizer = inner


def _inner(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    return (vars(optimizer)[name] for name in _NESTED if hasattr(vars(optimizer).get(name), "state"))


def _wraps(optimizer: torch.optim.Optimizer) -> bool:
    return next(_inner(optimizer), None) is not None


def _role(optimizer: torch.optim.Optimizer, name: Any, value: Any, parameter: Tensor) -> _Role | None:
    """Return the role of a state entry; None for counts and other scalars, which are kept."""
    if not isinstance(value, Tensor):
        return None if value is None or isinstance(value, bool | int | float | str) else "unknown"
    if value.ndim == 0 or value.numel() == 0:
        return None
    plain = type(value) in (Tensor, nn.Parameter) and value.is_floating_point() and not value.is_sparse
    if not plain or not _aligned(value, parameter):
        return "unknown"
    if name in _FIRST:
        return "first"
    if name in _SECOND:
        return "second"
    if value.shape == parameter.shape:
        schedule_free = re.search("schedule_?free", type(optimizer).__name__, re.IGNORECASE)
        if name in _WEIGHTS or (schedule_free and name in _ITERATES):
            return "weight"
        if name == "step_size" and isinstance(optimizer, torch.optim.Rprop):
            return "rate"
    return "unknown"


def _aligned(value: Tensor, parameter: Tensor) -> bool:
    """Whether the state has the axes of the parameter; Adafactor keeps [out, 1] and [1, in]."""
    return value.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))


def _reset_known(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    changed: Tensor,
    rule: MomentRule,
    roles: dict[Any, _Role | None],
) -> None:
    state, all_changed = optimizer.state[parameter], bool(changed.all())
    for name, value in [*state.items()]:
        role = roles[name]
        if role is None:
            if rule == "restart" or all_changed:
                _restart(state, name, value)
        elif role == "weight":
            value.copy_(torch.where(changed, parameter.to(value.dtype), value))
        elif role == "rate":
            value[changed] = float(_group(optimizer, parameter)["lr"])
        elif role != "unknown":
            part = _reduced(changed, value)
            if role == "second" and rule == "mean" and not bool(part.all()):
                value[part] = value[~part].mean()
            else:
                value[part] = _group(optimizer, parameter).get("initial_accumulator_value", 0.0)  # of Adagrad


def _restart(state: dict[Any, Any], name: Any, value: Any) -> None:
    if name == "step":
        if isinstance(value, Tensor):
            value.zero_()
        else:
            state[name] = type(value)(0)
    elif name == "mu_product" and isinstance(value, Tensor):  # NAdam's product over steps
        value.fill_(1.0)


def _reduced(changed: Tensor, value: Tensor) -> Tensor:
    """Reduce the mask to the shape of a factored state: an entry is reset if all its weights have changed."""
    for axis, size in enumerate(value.shape):
        if size != changed.shape[axis]:
            changed = changed.all(axis, keepdim=True)
    return changed


def _group(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The options of the parameter."""
    return next((group for group in optimizer.param_groups if any(p is parameter for p in group["params"])), {})
