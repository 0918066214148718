"""Interventions with simple, known effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench import Intervention, Report
from plastibench.nn.network import Network

PULL = 0.5


def pull(module: nn.Module) -> Tensor:
    """The penalty of :class:`Pull`."""
    return PULL * sum(parameter.square().sum() for parameter in module.parameters())


class Pull(Intervention):
    """Penalizes all weights."""

    def penalty(self, network: Network, batch: TensorDict) -> Tensor:
        return pull(network.module)


@dataclass
class Recording(Intervention):
    """Records what it receives, and draws a random number at each intervention."""

    updates: int = 0
    seen: list[tuple[int, TensorDict]] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    drawn: float = 0.0

    def before_update(self, network: Network) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in network.module.parameters()]))

    def after_update(self, network: Network) -> None:
        self.updates += 1

    def intervene(self, network: Network, batch: TensorDict) -> Report:
        self.seen.append((self.updates, batch))
        self.drawn = float(torch.rand((), generator=network.generator))
        return Report()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]


class Slow(Intervention):
    """Evaluates another module."""

    def evaluated(self, network: Network) -> nn.Module:
        return nn.Identity()
