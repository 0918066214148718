"""Self-Normalized Resets: reinitialize units that are silent for unusually long (Farias & Jozefiak 2025)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.activation_monitor import ActivationMonitor
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import MomentRule
from plastibench.nn.reinit import include_normalized_layers, reinitialize_batch_norms, reinitialize_units, zero_outgoing
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count


@register_intervention("self-normalized-resets")
@dataclass
class SelfNormalizedResets(Intervention):
    """Reinitialize units that stay silent longer than almost all of their own past silences (Farias & Jozefiak 2025).

    A hidden unit fires in an update if it is positive for any sample or token of the batch. The lengths of its silences
    are assumed to be exponentially distributed, so a quantile follows from their mean: τ = -ln(1 - p)·mean. Every
    ``retune`` updates, the threshold of a unit becomes τ if τ is lower than the current threshold; otherwise the
    threshold is doubled. A filter is reinitialized together with its BatchNorm entries, because their shift may be what
    silences it.

    Follows the moment version in ajozefiak/CL-transformers, which needs no histogram of silences. The rule requires an
    activation that can be silent, such as ReLU. With GELU every unit is positive for some token and nothing is ever
    reset; a warning is printed.
    """

    kind = "units"
    extra_memory = 0.03  # copies of the parameters of vit-nano

    quantile: float = option(
        0.99,
        "quantile of a unit's past silence durations above which it is reinitialized",
        low=0,
        high=1,
        formerly="percentile",
    )
    longest: int = option(20_000, "largest threshold, in updates", low=1)
    retune: int = option(1_000, "updates between adjustments of the thresholds", low=1)
    check: int = option(10, "updates between checks for units to reset; each check synchronizes with the device", low=1)
    moments: MomentRule = option(
        "mean", "new optimizer moments of reinitialized weights: mean of the rest, zero, or restart the step count"
    )

    def __post_init__(self) -> None:
        self._watch: ActivationMonitor | None = None
        self._updates = 0
        self._looked = False
        self._units: dict[str, dict[str, Tensor]] = {}  # silence, threshold, and sum and number of past silences; [H]

    def prepare(self, network: Network) -> None:
        """Start monitoring activations."""
        self._watch = ActivationMonitor(network, self._measure)

    def penalty(self, network: Network, batch: TensorDictBase) -> None:
        """Add no penalty. The first batch shows which units are hidden."""
        assert self._watch is not None
        if self._watch.confirm(batch):
            for unit in self._watch.hidden:
                empty = torch.zeros(unit_count(unit.module), device=network.device)
                self._units[unit.name] = {name: empty.clone() for name in ("silence", "sum", "number")}
                self._units[unit.name]["threshold"] = empty + self.longest

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Count silences. Reset units and adjust thresholds if due."""
        assert self._watch is not None
        seen = self._watch.pop_means()
        if not seen:
            return
        self._updates += 1
        for name, fraction in seen.items():
            state, fired = self._units[name], fraction > 0
            ended = fired & (state["silence"] > 0)
            state["sum"] += torch.where(ended, state["silence"], 0.0)
            state["number"] += ended
            state["silence"] = torch.where(fired, 0.0, state["silence"] + 1)
        if self._updates % self.check == 0:
            self._reset(network)
        if self._updates % self.retune == 0:
            for state in self._units.values():
                self._renew(state)

    def state_dict(self) -> dict[str, Any]:
        """Return silences and thresholds."""
        if self._watch is None or not self._watch.layers:
            return {}
        return {"watch": self._watch.state_dict(), "updates": self._updates, "units": self._units}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore silences and thresholds."""
        if state:
            assert self._watch is not None
            self._watch.load_state_dict(state["watch"])
            self._updates = state["updates"]
            device = self._watch.network.device
            self._units = {name: {k: v.to(device) for k, v in unit.items()} for name, unit in state["units"].items()}

    def _measure(self, unit: TracedLayer, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the fraction of rows in which each column is positive. [in]."""
        first, self._looked = not self._looked, True
        if first and not self._updates and bool((rows < 0).any()):
            print(
                "plastibench: self-normalized-resets counts silent units, but the activation of this network is not a "
                "ReLU; expect few or no resets",
                file=sys.stderr,
            )
        return (rows > 0).float().mean(0)

    def _renew(self, state: dict[str, Tensor]) -> None:
        typical = -math.log(max(1 - self.quantile, 1e-12)) * state["sum"] / state["number"].clamp_min(1)
        lower = (state["number"] > 0) & (typical < state["threshold"])
        threshold = torch.where(lower, typical, 2 * state["threshold"])
        state["threshold"] = threshold.clamp(1, self.longest)
        state["sum"].zero_()
        state["number"].zero_()

    def _reset(self, network: Network) -> None:
        assert self._watch is not None
        masks = {name: state["silence"] >= state["threshold"] for name, state in self._units.items()}
        if not bool(torch.stack([mask.any() for mask in masks.values()]).any()):
            return
        for name, mask in masks.items():
            self._units[name]["silence"].masked_fill_(mask, 0.0)
        units = self._watch.layers
        zero_outgoing(network, units, masks, self.moments)
        fresh = network.fresh()
        reinitialize_units(network, units, include_normalized_layers(units, masks), fresh, self.moments)
        reinitialize_batch_norms(network, units, masks, fresh, self.moments)
