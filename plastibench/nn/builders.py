"""Check that a builder of fresh modules returns a module that matches the original."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from plastibench.config.errors import UserError
from plastibench.config.own_code import describe
from plastibench.utils.notices import print_once
from plastibench.utils.wording import plural

Shapes = dict[str, torch.Size]

_EXAMPLE = "e.g. fresh=lambda: MyModel(config)"


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


def build_like(make: Callable[[], nn.Module], module: nn.Module, expected: Shapes) -> nn.Module:
    """Build a new module, check it, and rename its parameters to match the original.

    Args:
        make: The builder. Modules in what it returns are compiled if they are compiled in the original.
        module: The original.
        expected: Shapes of the parameters of the original when it had the architecture that ``make`` builds.

    Raises:
        UserError: The builder fails or returns no module, or the module shares memory with the original or has
            parameters or buffers with other names or shapes.
    """
    try:
        fresh = make()
    except UserError:
        raise
    except Exception as error:  # any error of the user's code
        raise UserError(f"fresh= failed: {describe(error)}") from error
    if not isinstance(fresh, nn.Module):
        raise UserError(f"fresh= returns {reprlib.repr(fresh)}; it must return a new module, {_EXAMPLE}")
    if any(parameter.is_meta for parameter in fresh.parameters()):
        raise UserError(f"fresh= returns a module on the meta device, without values; it must build one {_EXAMPLE}")
    own = {address for parameter in module.parameters() if (address := _address(parameter))}
    if any(_address(parameter) in own for parameter in fresh.parameters()):
        raise UserError(
            "fresh= returns parameters of the network itself, so nothing would be reinitialized; it must build a new "
            f"module at every call, {_EXAMPLE}"
        )
    fresh = unwrapped(fresh)
    if shapes(fresh).keys() != expected.keys():
        _compile_like(fresh, module)
    _compare(shapes(fresh), expected)
    if expected == shapes(module):
        _compare_buffers(fresh, module)
        if _is_copy(fresh, module):
            print_once(
                "plastibench: fresh= returns the current weights of the network, so nothing is reinitialized; it must "
                f"build a new module, {_EXAMPLE}"
            )
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


def _compare_buffers(fresh: nn.Module, module: nn.Module) -> None:
    """Check that all buffers of the network have a counterpart, which methods may copy."""
    found = {
        name: buffer.shape for name, buffer in fresh.named_buffers() if not isinstance(buffer, UninitializedBuffer)
    }
    for name, buffer in module.named_buffers():
        if isinstance(buffer, UninitializedBuffer):
            continue
        if name not in found:
            raise UserError(f"fresh= builds a different module than the network: it lacks the buffer {name}")
        if found[name] != buffer.shape:
            raise UserError(
                f"fresh= builds a different module than the network: the buffer {name} has shape {tuple(found[name])} "
                f"instead of {tuple(buffer.shape)}"
            )


def _is_copy(fresh: nn.Module, module: nn.Module) -> bool:
    """Whether all weight matrices have the values of the network, and one of them is not constant.

    Almost always, the first matrix answers the question.
    """
    others, drawn = dict(module.named_parameters()), False
    for name, mine in fresh.named_parameters():
        other = others[name]
        if mine.ndim < 2 or not _address(other) or mine.dtype != other.dtype:
            continue
        if not torch.equal(mine.to(other.device), other):
            return False
        drawn = drawn or bool((mine != mine.flatten()[0]).any())
    return drawn


def _address(parameter: nn.Parameter) -> int:
    """Where the values lie; 0 if they lie nowhere or are sharded."""
    lazy = isinstance(parameter, UninitializedParameter)
    return 0 if lazy or parameter.is_meta or hasattr(parameter, "to_local") else parameter.data_ptr()


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
