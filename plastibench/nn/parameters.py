"""Which parameters a method acts on at every update, what it remembers of them, and how fast they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network
from plastibench.nn.units import has_units, tied

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def trained(module: nn.Module, *, norms: bool = True) -> dict[str, Tensor]:
    """Parameters that are trained, by name, in registration order.

    Args:
        module: Any module.
        norms: Include scales and shifts of normalisation layers.
    """
    affine = () if norms else (child for child in module.modules() if _is_norm(child))
    spared = {id(parameter) for child in affine for parameter in child.parameters(recurse=False)}
    return {name: p for name, p in module.named_parameters() if p.requires_grad and id(p) not in spared}


def _is_norm(module: nn.Module) -> bool:
    """Whether this is a normalisation layer, of torch or by its name (``LlamaRMSNorm``, timm's ``RmsNorm``)."""
    flat = all(p.ndim == 1 for p in module.parameters(recurse=False))
    return isinstance(module, NORMS) or (type(module).__name__.lower().endswith("norm") and flat)


def layers(network: Network, *, output: bool) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d that is trained and has a weight of its own, by name, in registration order.

    Args:
        network: The network.
        output: Include its output layers. Which these are is known without a batch only if ``network.outputs`` says
            it; else the module with units that was registered last counts as the only one.

    Raises:
        UserError: There is none.
    """
    units = [(name, child) for name, child in network.module.named_modules() if has_units(child)]
    ends = network.outputs or tuple(name for name, _ in units[-1:])
    shared = tied(network.module)
    found = {
        name: child
        for name, child in units
        if isinstance(child, nn.Linear | nn.Conv2d)
        and child.weight.requires_grad
        and child.weight not in shared
        and (output or not any(name == end or name.startswith(f"{end}.") for end in ends))
    }
    if not found:
        which = "trained Linear or Conv2d" if output else "hidden, trained Linear or Conv2d"
        raise UserError(f"{type(network.module).__name__} has no {which} with a weight of its own to act on")
    return found


def remembered(
    memory: dict[str, Tensor], tensors: Mapping[str, Tensor], keep: Callable[[Tensor], Tensor] = torch.clone
) -> list[Tensor]:
    """What ``memory`` holds for each tensor; one that it does not know, or in another shape, enters as it is now.

    So parameters of a rebuilt architecture are remembered as they were when they were first seen.

    Args:
        memory: By name; changed in place. Its tensors follow the parameters to their device.
        tensors: Parameters, or views of them, by name.
        keep: What is remembered of one of them, in its shape.
    """
    for name, tensor in tensors.items():
        known = memory.get(name)
        if known is None or known.shape != tensor.shape:
            memory[name] = keep(tensor.detach())
        elif known.device != tensor.device:
            memory[name] = known.to(tensor.device)
    return [memory[name] for name in tensors]


def learning_rates(network: Network, parameters: Iterable[Tensor]) -> list[float]:
    """The present learning rate of each parameter; 0 for one that the optimizer does not own.

    Raises:
        UserError: The network has no optimizer.
    """
    if network.optimizer is None:
        raise UserError("this intervention scales with the learning rate; give Network(…) the optimizer")
    rates: dict[Tensor, float] = {
        p: float(group["lr"]) for group in network.optimizer.param_groups for p in group["params"]
    }
    return [rates.get(parameter, 0.0) for parameter in parameters]
