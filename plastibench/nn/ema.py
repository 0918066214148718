"""An exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plastibench.nn.architecture import Architecture
from plastibench.nn.computed_weights import copied
from plastibench.nn.network import Network


class EmaCopy:
    """An EMA copy of a network: φ ← m·φ + (1−m)·θ over parameters and floating-point buffers.

    Integer buffers keep their initial values. The copy has its own storage. When the architecture of the network is
    rebuilt, the copy is rebuilt with the same random draws. If the shapes of the network change by other means, such as
    a head for more classes, the average of the changed tensors starts again at their current values.
    """

    def __init__(self) -> None:
        self._replica: Network | None = None
        self._architecture: Architecture
        self._saved: dict[str, Tensor] = {}

    def module_for(self, network: Network) -> nn.Module:
        """The copy as a module without gradients; created from the current weights on the first call."""
        if self._replica is None:
            module = copied(network.module).requires_grad_(False)
            self._replica = Network(module, None, network.loss, role=f"{network.role}-slow", outputs=network.outputs)
            network.add_replica(self._replica)
            self._architecture = Architecture(network.module)
        if self._saved:  # deferred until now: the architecture may have been rebuilt after load_state_dict()
            self._replica.module.load_state_dict(self._saved)
            self._saved = {}
        elif not self._architecture.unchanged():
            self._architecture = Architecture(network.module)
            if not _same_shapes(self._replica.module, network.module):
                self._replica.module = _with_values_of(self._replica.module, network.module)
        return self._replica.module

    @torch.no_grad()
    def update(self, network: Network, momentum: float) -> None:
        """Take one averaging step towards the current weights."""
        torch._foreach_lerp_(_floating(self.module_for(network)), _floating(network.module), 1 - momentum)

    @torch.no_grad()
    def copy_to(self, network: Network) -> None:
        """Write the weights of the copy into the network, in place."""
        torch._foreach_copy_(_floating(network.module), _floating(self.module_for(network)))

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers of the copy; empty before it is created."""
        if self._saved or self._replica is None:
            return dict(self._saved)
        return dict(self._replica.module.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore from :meth:`state_dict`."""
        self._saved = dict(state)


def _same_shapes(one: nn.Module, other: nn.Module) -> bool:
    return [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]


@torch.no_grad()
def _with_values_of(old: nn.Module, module: nn.Module) -> nn.Module:
    """A copy of ``module`` without gradients, with the values of ``old`` wherever name and shape agree."""
    found, known = copied(module).requires_grad_(False), old.state_dict()
    for name, value in found.state_dict().items():
        if isinstance(value, Tensor) and name in known and known[name].shape == value.shape:
            value.copy_(known[name])
    return found


def _floating(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
