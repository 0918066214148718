"""Hare & Tortoise (Lee et al. 2024), and its slow weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tensordict import TensorDictBase
from torch import nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.ema import EmaCopy
from plastibench.nn.network import Network


@register_intervention("ema")
@dataclass
class EMA(Intervention):
    """Evaluate the exponential moving average φ ← m·φ + (1−m)·θ of the weights; training does not see it.

    Parameters and floating-point buffers (BatchNorm statistics) are averaged at every update, over all tasks. Another
    intervention's work on θ reaches φ gradually, as training does.
    """

    kind = "averaging"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    momentum: float = option(0.999, "m", low=0, high=1)

    def __post_init__(self) -> None:
        self._slow = EmaCopy()
        self._updates = 0

    def prepare(self, network: Network) -> None:
        """Start the average at the initial weights."""
        self._slow.of(network)

    def after_update(self, network: Network) -> None:
        """One step of the average."""
        self._slow.follow(network, self.momentum)
        self._updates += 1

    def evaluated(self, network: Network) -> nn.Module:
        """The average."""
        return self._slow.of(network)

    def state_dict(self) -> dict[str, Any]:
        """The average and the count of updates."""
        return {"slow": self._slow.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._slow.load_state_dict(state["slow"])
        self._updates = state["updates"]


@register_intervention("hare-tortoise")
@dataclass
class HareTortoise(EMA):
    """The hare θ learns, the tortoise φ is its moving average, and now and then the hare is set back to it: θ ← φ.

    Values are copied, never shared: in the authors' code (dojeon-ai/Hare-Tortoise) both networks have one storage
    until the next step of the average. Optimizer state is kept, as there. There the hare is set back every 10 epochs,
    counted from 0 in each task, so first after one epoch, when the tortoise has hardly moved; here it is at every
    intervention of the run's schedule or every ``sync_every`` updates. A target network that is worked on likewise
    (``--agent.target-policy same``) never makes an update of its own, so it has no tortoise and stays as it is.
    """

    kind = "averaging"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    sync_every: int = option(0, "updates between syncs; 0: when the run's schedule intervenes", low=0)
    evaluate: Literal["hare", "tortoise"] = option("hare", "whose outputs are evaluated")

    def after_update(self, network: Network) -> None:
        """One step of the average, and a sync when it is time."""
        super().after_update(network)
        if self.sync_every and self._updates % self.sync_every == 0:
            self._slow.copy_to(network)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Set the hare back, unless that happens by updates, or nothing was averaged yet."""
        if self.sync_every or not self._updates:
            return Report()
        self._slow.copy_to(network)
        return Report(parameters=sum(p.numel() for p in network.module.parameters()))

    def evaluated(self, network: Network) -> nn.Module:
        """Hare or tortoise."""
        return self._slow.of(network) if self.evaluate == "tortoise" else network.module
