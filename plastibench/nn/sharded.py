"""Parameters that FSDP2 (``fully_shard``) divides among processes: gather them for a method, and write the shards back.

Methods see ordinary modules with ordinary parameters. Every process gathers all parameters, computes the same change
from the same random draws, and keeps its own shard of the result. A process therefore needs memory for the full
parameters and the full optimizer state while a method acts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.optimizer_state import nested
from plastibench.utils import distributed

_FSDP = "torch.distributed.fsdp"
_ATTRIBUTES = ("__composable_api", "_is_fsdp", "_fsdp")  # prefixes of what fully_shard keeps in modules


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to the module or to a part of it."""
    return any(True for _ in _units(module))


def check_sharding(module: nn.Module, *, changes_architecture: str = "") -> None:
    """Check that a method can act on a module that is divided among processes.

    Args:
        module: Any module.
        changes_architecture: Name of the method, if it changes the architecture.

    Raises:
        UserError: The module is sharded in a way that is not supported.
    """
    if _FSDP not in sys.modules:
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(child, FullyShardedDataParallel) for child in module.modules()):
        raise UserError("attach: FullyShardedDataParallel (FSDP1) is not supported; use fully_shard (FSDP2)")
    if not is_sharded(module):
        return
    if changes_architecture:
        raise UserError(
            f"attach: {changes_architecture} changes the architecture, which fully_shard does not allow; use "
            "DistributedDataParallel or another method"
        )
    _reshard(module)
    for name, parameter in module.named_parameters():
        if not isinstance(parameter, DTensor):
            if parameter.requires_grad:
                raise UserError(f"attach: {name} is not sharded, but others are; apply fully_shard to the whole model")
            continue
        if parameter.device_mesh.ndim > 1:
            raise UserError(f"attach: {name} is sharded over {parameter.device_mesh.ndim} dimensions; use one (FSDP2)")
        if parameter.device.type != parameter.device_mesh.device_type:
            raise UserError(f"attach: {name} is offloaded to the CPU; use fully_shard without an offload policy")


class Shards:
    """The parameters of a module that may be sharded."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # The full parameter of each sharded one. Methods may keep it from one hook to the next, so it is always the
        # same object; it has content only inside full().
        self._full: dict[nn.Parameter, nn.Parameter] = {}

    @contextmanager
    def full(self, optimizer: torch.optim.Optimizer | None, *, gradients: bool = False) -> Iterator[None]:
        """Replace sharded parameters with full ones inside the block, in the module and in its optimizer.

        Changes of their values, gradients and optimizer state are written back into the shards. If the block raises,
        nothing is written.

        Args:
            optimizer: The optimizer.
            gradients: Also gather the gradients.

        Raises:
            UserError: The block has replaced a parameter.
        """
        _reshard(self._module)
        places = [
            (owner, name, parameter)
            for owner in self._module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None and _is_sharded(parameter)
        ]
        sharded = list(dict.fromkeys(parameter for _, _, parameter in places))
        for parameter in sharded:
            self._gather(parameter, gradients)
        with ExitStack() as stack:
            stack.callback(self._release)
            for owner, name, parameter in places:
                owner._parameters[name] = self._full[parameter]
                stack.callback(owner._parameters.__setitem__, name, parameter)
            states = [stack.enter_context(_full_state(each, self._full)) for each in nested(optimizer)]
            stack.enter_context(_ordinary(self._module))
            yield
            if any(owner._parameters.get(name) is not self._full[parameter] for owner, name, parameter in places):
                raise UserError("this method changes the architecture, which fully_shard does not allow")
            for parameter in sharded:
                self._write(parameter, gradients)
            for write in states:
                write()

    def penalty(self, optimizer: torch.optim.Optimizer | None, penalty: Callable[[], Tensor | None]) -> Tensor | None:
        """Compute a penalty on full parameters. Its gradient, averaged over the processes, reaches the shards.

        Args:
            optimizer: The optimizer.
            penalty: Returns a scalar that is computed from the parameters of the module, or None.
        """
        with self.full(None):
            term = penalty()
            if term is None or not term.requires_grad:
                return term
            trained = [(parameter, full) for parameter, full in self._full.items() if full.requires_grad]
            found = torch.autograd.grad(term, [full for _, full in trained], allow_unused=True)
            parts = [(parameter, grad) for (parameter, _), grad in zip(trained, found, strict=True) if grad is not None]
            distributed.all_reduce_sum(grad for _, grad in parts)
            size = distributed.world_size()
            own = [(parameter, _own_part(grad / size, parameter)) for parameter, grad in parts]
        anchor = torch.zeros((), device=term.device, requires_grad=True)
        value: Tensor = _Known.apply(term.detach(), anchor, own)
        return value

    @torch.no_grad()
    def _gather(self, parameter: nn.Parameter, gradients: bool) -> None:
        if parameter not in self._full:
            self._full[parameter] = nn.Parameter(
                torch.empty(0, dtype=parameter.dtype, device=parameter.device), parameter.requires_grad
            )
        full = self._full[parameter]
        full.requires_grad_(parameter.requires_grad)
        full.data = _full_copy(parameter)
        full.grad = _full_copy(parameter.grad) if gradients and parameter.grad is not None else None

    @torch.no_grad()
    def _write(self, parameter: nn.Parameter, gradients: bool) -> None:
        full = self._full[parameter]
        _local(parameter).copy_(_own_part(full.detach(), parameter))
        if gradients and parameter.grad is not None and full.grad is not None:
            _local(parameter.grad).copy_(_own_part(full.grad, parameter.grad))

    def _release(self) -> None:
        for full in self._full.values():
            full.grad = None
            full.data = full.data.new_empty(0)


class _Known(torch.autograd.Function):
    """A value whose gradient is known; it is added to the shards after FSDP has written its own gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, gradients: list[tuple[nn.Parameter, Tensor]]) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        gradients, factor = ctx.gradients, outer[0].detach()

        @torch.no_grad()
        def add() -> None:
            if factor.is_cuda:  # FSDP may still be reducing on another stream
                torch.cuda.synchronize(factor.device)
            for parameter, gradient in gradients:
                part = (gradient * factor).to(gradient.dtype)
                if parameter.grad is None:
                    parameter.grad = _like(part, parameter)
                else:
                    _local(parameter.grad).add_(part)

        torch.autograd.Variable._execution_engine.queue_callback(add)
        return None, torch.zeros_like(factor), None


def _units(module: nn.Module) -> Iterator[Any]:
    """The submodules to which ``fully_shard`` was applied."""
    if _FSDP in sys.modules and distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        yield from (child for child in module.modules() if isinstance(child, FSDPModule))


def _reshard(module: nn.Module) -> None:
    """Free full parameters that FSDP keeps after a forward pass without a backward pass."""
    for unit in _units(module):
        unit.reshard()


@contextmanager
def _ordinary(module: nn.Module) -> Iterator[None]:
    """Remove what ``fully_shard`` has added to modules: their forward passes gather nothing, and they can be copied.

    Hooks that are added inside the block are kept.
    """
    with ExitStack() as stack:
        for child in module.modules():
            attributes = vars(child)
            for name in [name for name in attributes if name.startswith(_ATTRIBUTES)]:
                stack.callback(attributes.__setitem__, name, attributes.pop(name))
            for name, table in attributes.items():
                if name.endswith("_hooks") and any(map(_is_of_fsdp, table.values())):
                    stack.callback(_restore_hooks, table, dict(table))
                    for number in [number for number, hook in table.items() if _is_of_fsdp(hook)]:
                        del table[number]
        for unit in [*_units(module)]:
            stack.callback(setattr, unit, "__class__", type(unit))
            unit.__class__ = type(unit).__bases__[1]  # fully_shard made a subclass of (FSDPModule, this class)
        yield


def _restore_hooks(table: dict[int, Any], before: dict[int, Any]) -> None:
    """Put FSDP's hooks back in their places, before hooks that were added since."""
    added = {number: hook for number, hook in table.items() if number not in before}
    kept = {number: hook for number, hook in before.items() if number in table or _is_of_fsdp(hook)}
    table.clear()
    table.update({**kept, **added})


def _is_of_fsdp(hook: Any) -> bool:
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith(_FSDP)


@contextmanager
def _full_state(
    optimizer: torch.optim.Optimizer, full: dict[nn.Parameter, nn.Parameter]
) -> Iterator[Callable[[], None]]:
    """Replace the sharded parameters in an optimizer; yield a function that writes their state back."""
    groups = [group["params"] for group in optimizer.param_groups]
    shards = {p: optimizer.state.pop(p) for params in groups for p in params if p in full and p in optimizer.state}
    for parameter, entries in shards.items():
        optimizer.state[full[parameter]] = {
            name: _full_copy(value) if isinstance(value, Tensor) else value for name, value in entries.items()
        }
    for group in optimizer.param_groups:
        group["params"] = [full.get(parameter, parameter) for parameter in group["params"]]

    @torch.no_grad()
    def write() -> None:
        for parameter, whole in full.items():
            entries, before = optimizer.state.get(whole), shards.pop(parameter, {})
            if entries is not None:
                shards[parameter] = {n: _sharded_state(v, before.get(n), parameter) for n, v in entries.items()}

    try:
        yield write
    finally:
        for whole in full.values():
            optimizer.state.pop(whole, None)
        for group, params in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = params
        optimizer.state.update(shards)


def _sharded_state(value: Any, before: Any, parameter: nn.Parameter) -> Any:
    """The sharded form of a state entry: the earlier tensor with new content, or a new one like the parameter."""
    if before is not None and _is_sharded(before):
        _local(before).copy_(_own_part(value, before))
        return before
    if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
        return _like(_own_part(value, parameter), parameter)
    return value


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")


def _full_copy(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if _is_sharded(tensor) else tensor
    return found.detach().clone()


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local()
    return found


def _own_part(full: Tensor, like: Any) -> Tensor:
    """The part of a full tensor that belongs to this process."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


def _like(local: Tensor, parameter: Any) -> Any:
    """A sharded tensor from the part of this process, divided like the parameter."""
    from torch.distributed.tensor import DTensor

    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
