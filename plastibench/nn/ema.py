"""A slow copy of a network: the exponential moving average of its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from plastibench.nn.network import Network


class EmaCopy:
    """φ ← m·φ + (1−m)·θ over parameters and floating-point buffers; integer buffers keep what they had at the start.

    It has storage of its own, never shared with the network's. Where the network's architecture is rebuilt, the copy
    is rebuilt with it; what the change draws is the same in both.
    """

    def __init__(self) -> None:
        self._follower: Network | None = None
        self._saved: dict[str, Tensor] = {}

    def of(self, network: Network) -> nn.Module:
        """The copy as a module without gradients; made from the present weights when it is first asked for."""
        if self._follower is None:
            module = copy.deepcopy(network.module).requires_grad_(False)
            self._follower = Network(module, None, network.loss, role=f"{network.role}-slow", outputs=network.outputs)
            network.add_replica(self._follower)
        if self._saved:  # only now: between loading and the first use, the architecture may have been rebuilt
            self._follower.module.load_state_dict(self._saved)
            self._saved = {}
        return self._follower.module

    @torch.no_grad()
    def follow(self, network: Network, momentum: float) -> None:
        """One step of the average."""
        torch._foreach_lerp_(_floating(self.of(network)), _floating(network.module), 1 - momentum)

    @torch.no_grad()
    def copy_to(self, network: Network) -> None:
        """Write the copy into the network, in place."""
        torch._foreach_copy_(_floating(network.module), _floating(self.of(network)))

    def state_dict(self) -> dict[str, Tensor]:
        """The copy's parameters and buffers; empty before it was made."""
        if self._saved or self._follower is None:
            return dict(self._saved)
        return dict(self._follower.module.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._saved = dict(state)


def _floating(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
