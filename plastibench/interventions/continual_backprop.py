"""Continual Backprop: continually reinitialize the least useful units (Dohare et al. 2024)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.activation_monitor import ActivationMonitor, mean_per_unit
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import MomentRule
from plastibench.nn.reinit import include_normalized_layers, reinitialize_batch_norms, reinitialize_units, zero_outgoing
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import is_linear, unit_count, unit_weight


@register_intervention(
    "continual-backprop",
    "Replace the least useful units at a constant low rate (Dohare et al. 2024, contribution utility)",
)
@register_intervention(
    "continual-backprop-adaptable",
    "continual-backprop that also counts how fast a unit could adapt (Dohare et al. 2021, "
    "adaptable-contribution utility)",
    utility="adaptable",
)
@dataclass
class ContinualBackprop(Intervention):
    """Replace the least useful units of each hidden layer at a constant rate.

    Every update adds ``rate`` times the number of mature units to the replacements due in a layer; fractions
    accumulate until a unit is replaced. A replaced unit gets fresh incoming weights, zero outgoing weights, and is
    protected for ``maturity`` updates.

    Source: Dohare et al. 2024 and shibhansh/loss-of-plasticity. Differences:

    - Units are replaced after the optimizer step, not during the backward pass.
    - The mean contribution of a removed unit is added to the bias of the layers that read it. The source intends
      this, but resets the mean before it computes the contribution.
    - If a Linear reads a flattened convolution, the source averages E|h|·|outgoing| over positions; this class
      multiplies the averages of both. If several layers read a unit, their weights are added.
    - For ``adaptable``, the subtracted mean excludes the current batch; the source includes it.
    - Fractions of a replacement always accumulate. The source's class ``GnT`` instead replaces a unit with this
      probability, unless its ``accumulate`` is set.
    - ``maturity`` is 100, as in the source's ConvGnT and its experiments on MNIST; GnT defaults to 20, and experiments
      use up to 10,000. ``rate`` is 1e-4 in both; experiments use 1e-6 to 3e-4.
    - Incoming weights, and the BatchNorm entries of a replaced filter, follow the network's own initialization.

    Only hidden units followed by a nonlinearity are replaced; in a ViT these are the units of ``mlp.fc1``, averaged
    over tokens. If a LayerNorm separates a unit from the weights that read it, utility still uses these weights, but no
    bias is adjusted.
    """

    kind = "units"
    extra_memory = 0.025  # copies of the parameters of vit-nano

    rate: float = option(1e-4, "fraction of the mature units of a layer to replace per update", low=0, high=1)
    maturity: int = option(100, "updates for which a new unit is protected", low=1)
    utility: Literal["contribution", "adaptable"] = option(
        "contribution", "utility of a unit: E|h|·|outgoing|, or E|h - mean(h)|·|outgoing|/|incoming|"
    )
    decay: float = option(0.99, "decay of the running means of utility and activation, per update", low=0, high=0.9999)
    compensate: bool = option(
        True, "add the mean contribution of a removed unit to the bias of the Linear layers that read it"
    )
    moments: MomentRule = option(
        "mean", "new optimizer moments of reinitialized weights: mean of the rest, zero, or restart the step count"
    )

    def __post_init__(self) -> None:
        self._watch: ActivationMonitor | None = None
        self._updates = 0
        self._units: dict[str, dict[str, Tensor]] = {}  # age, utility, mean; [H] each
        self._owed: dict[str, float] = {}
        self._young: dict[str, deque[tuple[int, int]]] = {}  # (update, count) of replacements, for maturity updates
        self._fresh: tuple[int, Tensor, nn.Module | None] | None = None  # (update, random state, fresh network)

    def prepare(self, network: Network) -> None:
        """Start monitoring activations."""
        self._watch = ActivationMonitor(network, self._measure)

    def penalty(self, network: Network, batch: TensorDictBase) -> None:
        """Add no penalty. The first batch shows which units are hidden."""
        assert self._watch is not None
        if self._watch.confirm(batch):
            self._fresh = None
            known, self._units = self._units, {}
            for unit in self._watch.hidden:
                size = unit_count(unit.module)
                if unit.name in known and len(known[unit.name]["age"]) == size:  # another layer was replaced
                    self._units[unit.name] = known[unit.name]
                    continue
                dtype = torch.promote_types(next(unit.module.parameters()).dtype, torch.float32)
                empty = torch.zeros(size, dtype=dtype, device=network.device)
                self._units[unit.name] = {name: empty.clone() for name in ("age", "utility", "mean")}
                self._owed[unit.name] = 0.0
                self._young[unit.name] = deque([(self._updates, size)])

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Update the utilities, and replace units that are due."""
        assert self._watch is not None
        seen = self._watch.pop_means()
        if not seen:
            return
        self._updates += 1
        modules = {unit.name: unit.module for unit in self._watch.layers}
        due: dict[str, Tensor] = {}
        for unit in (unit for unit in self._watch.hidden if unit.name in seen):
            state, young, size = self._units[unit.name], self._young[unit.name], unit_count(unit.module)
            state["age"] += 1
            size_now, mean_now = seen[unit.name]
            state["mean"].lerp_(mean_now, 1 - self.decay)
            worth = size_now * _outgoing(unit, modules)
            if self.utility == "adaptable":
                worth = worth / _incoming(unit).clamp_min(1e-12)
            state["utility"].lerp_(worth, 1 - self.decay)
            while young and young[0][0] + self.maturity < self._updates:
                young.popleft()
            self._owed[unit.name] += self.rate * (size - sum(count for _, count in young))
            if count := int(self._owed[unit.name]):
                self._owed[unit.name] -= count
                young.append((self._updates, count))
                utility = torch.where(state["age"] > self.maturity, self._unbiased(state, "utility"), torch.inf)
                due[unit.name] = torch.zeros(size, dtype=torch.bool, device=utility.device)
                due[unit.name][utility.topk(count, largest=False).indices] = True
        if due:
            self._replace(network, due)

    def state_dict(self) -> dict[str, Any]:
        """Return ages, utilities and replacements due."""
        if self._watch is None or not self._watch.layers:
            return {}
        return {
            "watch": self._watch.state_dict(),
            "updates": self._updates,
            "units": self._units,
            "owed": self._owed,
            "young": {name: list(entries) for name, entries in self._young.items()},
            "fresh": self._fresh[:2] if self._fresh else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ages, utilities and replacements due."""
        if state:
            assert self._watch is not None
            self._watch.load_state_dict(state["watch"])
            self._updates, self._owed = state["updates"], state["owed"]
            device = self._watch.network.device
            self._units = {name: {k: v.to(device) for k, v in unit.items()} for name, unit in state["units"].items()}
            self._young = {name: deque(map(tuple, entries)) for name, entries in state["young"].items()}
            self._fresh = (*state["fresh"], None) if state["fresh"] else None

    def _measure(self, unit: TracedLayer, rows: Tensor, columns: Tensor) -> Tensor:
        """Return E|h| or E|h - mean(h)|, and E[h]. [2, in]."""
        if self.utility == "adaptable":
            centre = self._unbiased(self._units[unit.name], "mean")[columns]
            size = (rows - centre).abs().mean(0)
        else:
            size = rows.abs().mean(0)
        return torch.stack([size, rows.mean(0)])

    def _unbiased(self, state: dict[str, Tensor], name: str) -> Tensor:
        """Return a running mean with its bias towards the initial zero removed."""
        return state[name] / (1 - self.decay ** state["age"]).clamp_min(1e-12)

    def _replace(self, network: Network, masks: dict[str, Tensor]) -> None:
        assert self._watch is not None
        units = self._watch.layers
        modules = {unit.name: unit.module for unit in units}
        for unit in units:
            if unit.name in masks:
                state = self._units[unit.name]
                if self.compensate:
                    _compensate(unit, modules, torch.where(masks[unit.name], self._unbiased(state, "mean"), 0.0))
                for value in state.values():
                    value.masked_fill_(masks[unit.name], 0.0)
        zero_outgoing(network, units, masks, self.moments)
        fresh = self._drawn(network)
        reinitialize_units(network, units, include_normalized_layers(units, masks), fresh, self.moments)
        reinitialize_batch_norms(network, units, masks, fresh, self.moments)

    def _drawn(self, network: Network) -> nn.Module:
        """Return a fresh network, renewed before any of its rows would be used twice."""
        if self._fresh is None or self._fresh[0] + self.maturity < self._updates:
            before = network.generator.get_state()
            self._fresh = self._updates, before, network.fresh()
        when, before, fresh = self._fresh
        if fresh is None:  # after a resume: draw the same network again
            now = network.generator.get_state()
            network.generator.set_state(before)
            fresh = network.fresh()
            network.generator.set_state(now)
            self._fresh = when, before, fresh
        return fresh


def _outgoing(unit: TracedLayer, modules: dict[str, nn.Module]) -> Tensor:
    """Return the mean magnitude of the weights that read each unit, summed over readers. [H]."""
    total = torch.zeros(unit_count(unit.module), device=next(unit.module.parameters()).device)
    for reader, columns in unit.outgoing.items():
        if reader in modules:
            weight = unit_weight(modules[reader])
            total += mean_per_unit(unit, columns.to(total.device), weight.abs().transpose(0, 1).flatten(1).mean(1))
    return total


def _incoming(unit: TracedLayer) -> Tensor:
    """Return the mean magnitude of each unit's incoming weights. [H]."""
    weight = unit_weight(unit.module)
    return weight.abs().flatten(1).mean(1) if weight.ndim > 1 else weight.abs()


def _compensate(unit: TracedLayer, modules: dict[str, nn.Module], lost: Tensor) -> None:
    """Add the mean contribution of removed units to the biases of their readers. ``lost``: mean outputs [H]."""
    for reader, columns in unit.columns.items():
        module = modules[reader]
        if is_linear(module) and isinstance(module.bias, Tensor) and module.bias.requires_grad:
            module.bias.add_(unit_weight(module).to(lost.dtype) @ lost[columns.to(lost.device)])
