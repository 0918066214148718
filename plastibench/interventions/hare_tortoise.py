"""Moving averages of the weights: EMA, and Hare & Tortoise (Lee et al. 2024)."""

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
    """Evaluate an exponential moving average of the weights (Polyak & Juditsky 1992).

    φ ← m·φ + (1−m)·θ at every update, over all tasks, for parameters and floating-point buffers (BatchNorm statistics).
    Training is unchanged. If another intervention changes θ, φ adapts gradually.
    """

    kind = "averaging"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    momentum: float = option(0.999, "momentum m of the moving average", low=0, high=1)

    def __post_init__(self) -> None:
        self._slow = EmaCopy()
        self._updates = 0

    def prepare(self, network: Network) -> None:
        """Start the average at the initial weights."""
        self._slow.module_for(network)

    def after_update(self, network: Network) -> None:
        """Update the average."""
        self._slow.update(network, self.momentum)
        self._updates += 1

    def evaluated(self, network: Network) -> nn.Module:
        """Return the averaged network."""
        return self._slow.module_for(network)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"slow": self._slow.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average and the number of updates."""
        self._slow.load_state_dict(state["slow"])
        self._updates = state["updates"]


@register_intervention("hare-tortoise")
@dataclass
class HareTortoise(EMA):
    """Set the weights to their moving average at every intervention (Hare & Tortoise, Lee et al. 2024).

    The hare θ is trained, the tortoise φ is its moving average, and an intervention sets θ ← φ. The optimizer state is
    kept, as in the authors' code (dojeon-ai/Hare-Tortoise). Differences from that code:

    - It syncs every 10 epochs, counted from 0 in each task, so first after one epoch, when the tortoise has hardly
      moved. This class syncs at every intervention of the run, or every ``sync_every`` updates.
    - It shares the storage of both networks until the next update of the average. This class copies values.

    A target network with ``--agent.target-policy same`` is never updated by gradients and has no tortoise; it is kept.
    """

    kind = "averaging"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    sync_every: int = option(0, "updates between syncs; 0: sync whenever the run intervenes", low=0)
    evaluate: Literal["hare", "tortoise"] = option("hare", "network to evaluate")

    def after_update(self, network: Network) -> None:
        """Update the average, and sync if due."""
        super().after_update(network)
        if self.sync_every and self._updates % self.sync_every == 0:
            self._slow.copy_to(network)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Sync, unless ``sync_every`` is set or there was no update yet."""
        if self.sync_every or not self._updates:
            return Report()
        self._slow.copy_to(network)
        return Report(parameters=sum(p.numel() for p in network.module.parameters()))

    def evaluated(self, network: Network) -> nn.Module:
        """Return the hare or the tortoise."""
        return self._slow.module_for(network) if self.evaluate == "tortoise" else network.module
