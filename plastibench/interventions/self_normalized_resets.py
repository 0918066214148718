"""Self-Normalized Resets: reinitialize units that are silent for an unusually long time (Farias & Jozefiak 2025)."""

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

    A hidden unit fires in an update if it is positive for any sample or token of the batch. Each firing and each reset
    is an arrival; its length is the number of updates since the previous one, so 1 for a unit that always fires.
    Lengths are assumed to be exponentially distributed, so a quantile follows from their mean: τ = -ln(1 - p)·mean. The
    mean starts at a single arrival of length 1. Every ``retune`` updates, the threshold of a unit becomes τ if τ is
    lower than the current threshold; otherwise the threshold is doubled. The mean then starts again. Thresholds are
    rounded up. A filter is reinitialized together with its BatchNorm entries, because their shift may be what silences
    it.

    Follows the moment version in ajozefiak/CL-transformers, which needs no histogram of silences. Its experiments use
    ``percentile=0.95`` and have no upper limit; they adjust the thresholds at random updates (with the probability
    ``reset_freq``); this class uses a fixed interval. The histogram version, ajozefiak/SelfNormalizedResets, counts
    samples instead of updates; its port in isaac7778/FIRE has the limit of 20,000.

    The rule requires an activation that can be silent, such as ReLU. With GELU, every unit is positive for some token,
    so nothing is ever reset; a warning is printed.
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
    first: int = option(16, "first threshold, in updates", low=1)
    retune: int = option(1_000, "updates between adjustments of the thresholds", low=1)
    check: int = option(1, "updates between checks for units to reset; each check synchronizes with the device", low=1)
    moments: MomentRule = option(
        "mean", "new optimizer moments of reinitialized weights: mean of the rest, zero, or restart the step count"
    )

    def __post_init__(self) -> None:
        self._watch: ActivationMonitor | None = None
        self._updates = 0
        self._looked = False
        self._units: dict[str, dict[str, Tensor]] = {}  # silence, threshold, sum and number of arrival lengths; [H]

    def prepare(self, network: Network) -> None:
        """Start monitoring activations."""
        self._watch = ActivationMonitor(network, self._measure)

    def penalty(self, network: Network, batch: TensorDictBase) -> None:
        """Add no penalty. The first batch shows which units are hidden."""
        assert self._watch is not None
        if self._watch.confirm(batch):
            known, self._units = self._units, {}
            for unit in self._watch.hidden:
                if unit.name in known and len(known[unit.name]["silence"]) == unit_count(unit.module):
                    self._units[unit.name] = known[unit.name]  # another layer was replaced
                    continue
                empty = torch.zeros(unit_count(unit.module), device=network.device)
                start = {"silence": 0.0, "threshold": min(self.first, self.longest), "sum": 1.0, "number": 1.0}
                self._units[unit.name] = {name: empty + value for name, value in start.items()}

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
            state["silence"] += 1
            _arrive(state, fired)
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
        typical = -math.log(max(1 - self.quantile, 1e-12)) * state["sum"] / state["number"]
        threshold = torch.where(typical < state["threshold"], typical, 2 * state["threshold"])
        state["threshold"] = threshold.ceil().clamp(1, self.longest)
        state["sum"].fill_(1.0)
        state["number"].fill_(1.0)

    def _reset(self, network: Network) -> None:
        assert self._watch is not None
        masks = {name: state["silence"] >= state["threshold"] for name, state in self._units.items()}
        if not bool(torch.stack([mask.any() for mask in masks.values()]).any()):
            return
        for name, mask in masks.items():
            _arrive(self._units[name], mask)
        units = self._watch.layers
        zero_outgoing(network, units, masks, self.moments)
        fresh = network.fresh()
        reinitialize_units(network, units, include_normalized_layers(units, masks), fresh, self.moments)
        reinitialize_batch_norms(network, units, masks, fresh, self.moments)


def _arrive(state: dict[str, Tensor], mask: Tensor) -> None:
    """Record an arrival of the masked units, and start to count their silence again."""
    state["sum"] += torch.where(mask, state["silence"], 0.0)
    state["number"] += mask
    state["silence"].masked_fill_(mask, 0.0)
