"""Weights that are computed from other parameters: weight normalization, pruning, ``torch.nn.utils.parametrize``.

Such a weight cannot be written directly. If the parametrization can represent any weight (weight normalization can,
spectral normalization and pruning cannot), :func:`plain_weights` temporarily makes it an ordinary parameter and then
writes it back through the right inverse. Other modules of this kind are not changed; see :func:`describe`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from plastibench.nn.optimizer_state import reset_state
from plastibench.utils.wording import plural


def copied(module: nn.Module) -> nn.Module:
    """A deep copy; tensors with an autograd graph that modules keep as attributes are copied without their graph."""
    memo: dict[int, object] = {}
    for child in module.modules():
        for value in vars(child).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def computed_parameters(module: nn.Module) -> dict[str, str]:
    """Map each parameter from which a weight is computed to the name of the module with this weight."""
    found: dict[str, str] = {}
    for prefix, child in module.named_modules():
        below = f"{prefix}." if prefix else ""
        if parametrize.is_parametrized(child):
            found |= {f"{below}parametrizations.{n}": prefix for n, _ in child.parametrizations.named_parameters()}
        for name in _hooked(child):
            found |= {f"{below}{n}": prefix for n in child._parameters if n.startswith(f"{name}_")}
    return found


def describe(module: nn.Module, *, always: bool = False) -> str:
    """Describe the modules with a computed weight that cannot be written back; empty if there are none.

    Args:
        module: Any module.
        always: Name all modules with a computed weight.
    """
    left = [
        prefix or type(child).__name__
        for prefix, child in module.named_modules()
        if (parametrize.is_parametrized(child) or _hooked(child)) and (always or not _invertible(child))
    ]
    if not left:
        return ""
    names = ", ".join(left[:4]) + (", …" if len(left) > 4 else "")
    cannot = "cannot be written at every update" if always else "cannot be written"
    return (
        f"the weights of {plural(len(left), 'module')} ({names}) are computed from other parameters and {cannot}; "
        "methods that act on layers or units skip these modules"
    )


def make_plain(module: nn.Module) -> list[_Plain]:
    """Turn computed weights that can be written back into ordinary parameters, in place."""
    return [_Plain(child) for child in [*module.modules()] if _invertible(child)]


@contextmanager
def plain_weights(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[bool]:
    """Make weights that can be written back ordinary parameters inside the block.

    Afterwards, the parameters from which they are computed are set so that they produce the new weights. If these
    parameters change, their optimizer state is reset. If the block fails, they are restored.

    Args:
        module: Any module.
        optimizer: Its optimizer, or None.

    Yields:
        Whether there are such weights.
    """
    plain = make_plain(module)
    try:
        yield bool(plain)
    except BaseException:
        for each in plain:
            each.restore()
        raise
    for each in plain:  # all before any is written, so that an error leaves the architecture as it was
        each.restore()
    for each in plain:
        each.write(optimizer)


class _Plain:
    """A module whose computed weights are ordinary parameters, until :meth:`restore`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = _computed(module)
        self.before = {name: getattr(module, name).detach().clone() for name in self.names}
        self.originals = _originals(module)
        self._class, self._modules = type(module), module._modules.copy()
        self._parameters, self._hooks = module._parameters.copy(), module._forward_pre_hooks.copy()
        trained = any(parameter.requires_grad for parameter in self.originals.values())
        self.plain = {name: nn.Parameter(value.clone(), trained) for name, value in self.before.items()}
        if parametrize.is_parametrized(module):
            del module._modules["parametrizations"]
            module.__class__ = parametrize.type_before_parametrizations(module)
        else:
            for key, hook in self._hooks.items():
                if isinstance(hook, WeightNorm):
                    del module._forward_pre_hooks[key]
            for name in self.names:
                delattr(module, name)
        own = {id(parameter) for parameter in self.originals.values()}
        kept = {name: p for name, p in module._parameters.items() if id(p) not in own}
        _replace(module._parameters, {**self.plain, **kept})

    def restore(self) -> None:
        """Restore the computed weights, with the old values of the parameters from which they are computed."""
        _replace(self.module._modules, self._modules)
        _replace(self.module._parameters, self._parameters)
        _replace(self.module._forward_pre_hooks, self._hooks)
        self.module.__class__ = self._class
        if not parametrize.is_parametrized(self.module):
            for name in self.names:
                setattr(self.module, name, self.before[name].clone())

    @torch.no_grad()
    def write(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write the weights that have changed through the right inverse."""
        old = {name: parameter.detach().clone() for name, parameter in self.originals.items()}
        for name in self.names:
            new = self.plain[name].detach()
            kept, zero = ~_any_by_row(new != self.before[name]), ~_any_by_row(new)
            if bool(kept.all()):
                continue
            _write(self.module, name, new)
            by_row = {key: p for key, p in self._of(name).items() if p.ndim and len(p) == len(kept)}
            if len(by_row) < len(self._of(name)):
                by_row = {}  # one value serves all rows: writing it changes the meaning of the others
            scaled = any(parameter.shape != new.shape for parameter in by_row.values())
            for key, parameter in by_row.items():  # exact: unchanged rows stay bit-identical
                # A row of zeros is a scale of 0, and keeps its direction.
                same = kept | zero if scaled and parameter.shape == new.shape else kept
                parameter.copy_(torch.where(same.reshape(-1, *[1] * (parameter.ndim - 1)), old[key], parameter))
            _refresh(self.module, name)
        for key, parameter in self.originals.items():
            reset_state(optimizer, parameter, parameter != old[key])

    def _of(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters from which one weight is computed."""
        starts = f"{name}.", f"{name}_"
        return {key: parameter for key, parameter in self.originals.items() if key.startswith(starts)}


def _any_by_row(values: Tensor) -> Tensor:
    """Whether each row of a weight or bias has an entry that is not zero. [rows]"""
    return values.reshape(len(values), -1).any(1)


def _computed(module: nn.Module) -> list[str]:
    """Names of the tensors that are computed."""
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        return list(module.parametrizations)
    return _hooked(module)


def _originals(module: nn.Module) -> dict[str, nn.Parameter]:
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        return dict(module.parametrizations.named_parameters())
    names = [f"{name}_{part}" for name in _hooked(module) for part in "gv"]
    return {name: module.get_parameter(name) for name in names}


def _hooked(module: nn.Module) -> list[str]:
    """Names of tensors that forward pre-hooks compute: ``nn.utils.weight_norm``, ``spectral_norm`` and ``prune``."""
    hooks: list[Any] = [*module._forward_pre_hooks.values()]
    normed = [str(hook.name) for hook in hooks if hasattr(hook, "compute_weight")]
    return normed + [str(hook._tensor_name) for hook in hooks if isinstance(hook, BasePruningMethod)]


def _invertible(module: nn.Module) -> bool:
    """Whether any weight can be written; tested on a copy whose rows are scaled differently."""
    if not parametrize.is_parametrized(module):
        norms = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
        return bool(norms) and len(norms) == len(_hooked(module)) and all(norm.dim == 0 for norm in norms)
    trial = copied(module).eval()
    assert isinstance(trial.parametrizations, nn.ModuleDict)
    with torch.no_grad():
        for name in trial.parametrizations:
            value = getattr(trial, name).detach().float()
            scale = torch.linspace(1.0, 2.0, value.numel(), device=value.device).view_as(value)
            wanted = (value * scale + 0.01 * scale).to(getattr(trial, name).dtype)
            try:
                setattr(trial, name, wanted)
            except Exception:  # parametrizations raise different errors: NotImplementedError, ValueError, RuntimeError
                return False
            if value.ndim == 0 or not torch.allclose(getattr(trial, name).float(), wanted.float(), rtol=1e-2):
                return False
    return True


def _write(module: nn.Module, name: str, value: Tensor) -> None:
    if parametrize.is_parametrized(module):
        setattr(module, name, value)
        return
    module._parameters[f"{name}_v"].copy_(value)  # type: ignore[union-attr]
    module._parameters[f"{name}_g"].copy_(torch.norm_except_dim(value, 2, 0))  # type: ignore[union-attr]


def _refresh(module: nn.Module, name: str) -> None:
    """Compute the attribute that a hook computes before every pass."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            setattr(module, name, hook.compute_weight(module).detach())


def _replace(target: dict, values: dict) -> None:  # type: ignore[type-arg]
    saved = OrderedDict(values)
    target.clear()
    target.update(saved)
