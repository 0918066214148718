"""Select the parameters that a method acts on, and look up their initial values and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network
from plastibench.nn.units import modules_with_units, output_layers, tied_parameters

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def trainable_parameters(module: nn.Module, *, norms: bool = True) -> dict[str, Tensor]:
    """Trainable parameters by name, in registration order.

    Args:
        module: Any module.
        norms: Include scales and shifts of normalization layers.
    """
    excluded = () if norms else (child for child in module.modules() if _is_norm(child))
    spared = {id(parameter) for child in excluded for parameter in child.parameters(recurse=False)}
    return {name: p for name, p in module.named_parameters() if p.requires_grad and id(p) not in spared}


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the module's state dict by name, without extra state (``get_extra_state``)."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _is_norm(module: nn.Module) -> bool:
    """Whether this is a normalization layer, by type or by name (``LlamaRMSNorm``, timm's ``RmsNorm``)."""
    flat = all(p.ndim == 1 for p in module.parameters(recurse=False))
    return isinstance(module, NORMS) or (type(module).__name__.lower().endswith("norm") and flat)


def trainable_layers(network: Network, *, output: bool) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d with a trainable weight of its own, by name, in registration order.

    Args:
        network: The network.
        output: Include the output layers. Without a batch they are known only from ``network.outputs``; if it is empty,
            the module with units that was registered last counts as the only one.

    Raises:
        UserError: The network has no such layer.
    """
    ends = output_layers(network.module, network.outputs)
    shared = tied_parameters(network.module)
    found = {
        name: child
        for child, name in modules_with_units(network.module).items()
        if isinstance(child, nn.Linear | nn.Conv2d)
        and isinstance(child.weight, nn.Parameter)  # not computed from other parameters
        and child.weight.requires_grad
        and child.weight not in shared
        and (output or not any(name == end or name.startswith(f"{end}.") for end in ends))
    }
    if not found:
        which = "trainable Linear or Conv2d" if output else "trainable hidden Linear or Conv2d"
        raise UserError(f"{type(network.module).__name__} has no {which} with a weight of its own (not tied)")
    return found


def layer_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable weights of every Linear and Conv2d by the layer's name, in registration order.

    Excludes tied weights, and weights that are computed from other parameters (as under weight normalization), because
    these cannot be written.
    """
    found, shared = {}, tied_parameters(module)
    for name, child in module.named_modules():
        weight = child.weight if isinstance(child, nn.Linear | nn.Conv2d) else None
        if isinstance(weight, nn.Parameter) and weight.requires_grad and weight not in shared:
            found[name] = weight
    return found


def initial_values(
    store: dict[str, Tensor], tensors: Mapping[str, Tensor], snapshot: Callable[[Tensor], Tensor] = torch.clone
) -> list[Tensor]:
    """Stored initial value of each tensor; tensors that are new, or have a new shape, are stored as they are now.

    After a rebuild, the values at which parameters are first seen count as initial.

    Args:
        store: Initial values by name; updated in place. Its tensors are moved to the device of the parameters.
        tensors: Parameters, or views of them, by name.
        snapshot: Computes the value to store, of the same shape.
    """
    for name, tensor in tensors.items():
        known = store.get(name)
        if known is None or known.shape != tensor.shape:
            store[name] = snapshot(tensor.detach())
        elif known.device != tensor.device:
            store[name] = known.to(tensor.device)
    return [store[name] for name in tensors]


def learning_rates(network: Network, parameters: Iterable[Tensor]) -> list[float]:
    """Current learning rate of each parameter; 0 for parameters that the optimizer does not own.

    Raises:
        UserError: The network has no optimizer.
    """
    if network.optimizer is None:
        raise UserError("this intervention scales with the learning rate, but the network has no optimizer; pass one")
    rates: dict[Tensor, float] = {
        p: float(group["lr"]) for group in network.optimizer.param_groups for p in group["params"]
    }
    return [rates.get(parameter, 0.0) for parameter in parameters]
