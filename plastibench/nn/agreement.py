"""Keep a network equal in all processes that train it."""

from __future__ import annotations

from torch import Tensor

from plastibench.config.errors import RunError
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import nested
from plastibench.utils import distributed


def copy_network_from_first(network: Network) -> None:
    """Copy parameters, buffers, optimizer state and random generator of the first process to all processes.

    Call it inside ``network.full_parameters()``.

    Raises:
        RunError: The processes have different networks or optimizers.
    """
    if distributed.world_size() == 1:
        return
    parameters = dict(network.module.named_parameters())
    tensors: dict[str, Tensor] = {**parameters, **dict(network.module.named_buffers())}
    for number, each in enumerate(nested(network.optimizer)):
        for name, parameter in parameters.items():
            for key, value in each.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name} (optimizer {number}: {key})"] = value
    state = network.generator.get_state()
    distributed.broadcast_from_first({**tensors, "generator": state})
    network.generator.set_state(state)


def copy_buffers_from_first(network: Network) -> None:
    """Copy the buffers of the first process to all processes, as DistributedDataParallel does before forward passes."""
    distributed.broadcast_from_first(dict(network.module.named_buffers()))


def check_equal(network: Network) -> None:
    """Check that the parameters are equal in all processes.

    Raises:
        RunError: They are not.
    """
    if distributed.world_size() == 1:
        return
    sums = [float(parameter.detach().double().abs().sum()) for parameter in network.module.parameters()]
    first, *others = distributed.gather_objects(sums)
    if any(other != first for other in others):
        raise RunError(
            f"the weights of the {network.role} differ between processes, because their kernels round differently; "
            "add --deterministic"
        )
