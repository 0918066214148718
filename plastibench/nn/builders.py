"""Check that a builder of fresh modules returns a module that matches the original."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from plastibench.config.errors import UserError
from plastibench.utils.wording import plural

Shapes = dict[str, torch.Size]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile(module)`` and data-parallel wrappers, or the module itself."""
    while is_compiled(module) or isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module._orig_mod if is_compiled(module) else module.module
        assert isinstance(inner, nn.Module)
        module = inner
    return module


def is_compiled(module: nn.Module) -> bool:
    """Whether this is what ``torch.compile(module)`` returns."""
    return "_orig_mod" in module._modules


def shapes(module: nn.Module) -> Shapes:
    """Shapes of the parameters by name; those of lazy modules that have not run yet are empty."""
    lazy = torch.Size()
    return {n: lazy if isinstance(p, UninitializedParameter) else p.shape for n, p in module.named_parameters()}


def resembling(fresh: nn.Module, module: nn.Module, expected: Shapes) -> nn.Module:
    """Check a newly built module, and rename its parameters to match the original.

    Args:
        fresh: What the builder returned. Modules in it are compiled if they are compiled in the original.
        module: The original.
        expected: Shapes of the parameters of the original when it had the architecture of ``fresh``.

    Raises:
        UserError: The module shares parameters with the original, or its parameters have other names or shapes.
    """
    own = {id(parameter) for parameter in module.parameters()}
    if any(id(parameter) in own for parameter in fresh.parameters()):
        raise UserError(
            "fresh= returns parameters of the network itself, so nothing would be reinitialized; it must build a new "
            "module at every call, e.g. fresh=lambda: MyModel(config)"
        )
    fresh = unwrapped(fresh)
    if shapes(fresh).keys() != expected.keys():
        _compile_like(fresh, module)
    _compare(shapes(fresh), expected)
    return fresh


def difference(found: Shapes, expected: Shapes) -> str:
    """Describe the first parameter with an unexpected name or shape; empty if there is none."""
    for name, shape in found.items():
        if name not in expected:
            return f"{name} is new"
        if shape != expected[name]:
            return f"{name} now has shape {tuple(shape)} instead of {tuple(expected[name])}"
    return next((f"{name} is gone" for name in expected if name not in found), "")


def _compare(found: Shapes, expected: Shapes) -> None:
    missing, more = [n for n in expected if n not in found], [n for n in found if n not in expected]
    if missing or more:
        what = [f"it lacks {missing[0]}"] if missing else []
        what += [f"it has an additional {more[0]}"] if more else []
        count = len(missing) + len(more)
        raise UserError(
            f"fresh= builds a different module than the network: {' and '.join(what)} ("
            f"{plural(count, 'name differs', 'names differ')})"
        )
    other = [n for n, shape in expected.items() if found[n] != shape]
    if other:
        name = other[0]
        if not found[name]:
            raise UserError(f"fresh= builds a lazy module: {name} has no shape yet; run it on a batch in the builder")
        raise UserError(
            f"fresh= builds a different module than the network: {name} has shape {tuple(found[name])} instead of "
            f"{tuple(expected[name])}; if the network has grown, let the builder build the grown network"
        )


def _compile_like(fresh: nn.Module, module: nn.Module) -> None:
    """Wrap submodules as in the original: ``torch.compile`` inserts ``_orig_mod`` into the names of parameters."""
    for name, child in [*fresh.named_modules()]:
        if name and is_compiled(child) and "_orig_mod" not in name:
            fresh.set_submodule(name, unwrapped(child))
    for name, child in module.named_modules():
        if is_compiled(child):
            try:
                inner = fresh.get_submodule(name)
            except AttributeError:  # another architecture, which the comparison reports
                return
            fresh.set_submodule(name, cast(nn.Module, torch.compile(inner)))
