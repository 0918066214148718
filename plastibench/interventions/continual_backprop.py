"""Continual Backprop: now and then the least useful mature units are re-drawn (Dohare et al. 2024)."""

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
from plastibench.nn.activation_monitor import ActivationMonitor, per_unit
from plastibench.nn.dataflow import TracedLayer
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import MomentRule
from plastibench.nn.reinit import redraw_batch_norms, redraw_units, whole_neurons, zero_outgoing
from plastibench.nn.units import unit_count


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
    """Every update, each hidden layer owes ``rate`` times its mature units a replacement; whole ones are paid.

    A replaced unit gets fresh incoming weights, outgoing weights of zero, and ``maturity`` updates of protection.
    Source: Dohare et al. 2024 and shibhansh/loss-of-plasticity. Followed otherwise than there: replacement comes after
    the optimizer's step, not inside the backward pass; what a removed unit sent on average goes into its readers' bias,
    which the source intends but computes after having forgotten the average; incoming weights come from the network's
    own initialisation, as do the BatchNorm entries of a replaced filter. Only classical hidden units take part: in a
    ViT those of ``mlp.fc1``, averaged over tokens. Where a LayerNorm stands between a unit and the weights that read
    it, these weights count, and nothing is compensated.
    """

    kind = "units"
    extra_memory = 0.025  # copies of the parameters of vit-nano

    rate: float = option(1e-4, "share of a layer's mature units that is replaced per update", low=0, high=1)
    maturity: int = option(100, "updates for which a unit is safe after it was drawn", low=1)
    utility: Literal["contribution", "adaptable"] = option(
        "contribution", "E|h|·|outgoing|, or E|h - its mean|·|outgoing|/|incoming|"
    )
    decay: float = option(0.99, "decay of the running means of utility and activation", low=0, high=0.9999)
    compensate: bool = option(True, "add what a removed unit sent on average to the bias of its (Linear) readers")
    moments: MomentRule = option("mean", "what becomes of the optimizer's moments of re-drawn weights")

    def __post_init__(self) -> None:
        self._watch: ActivationMonitor | None = None
        self._updates = 0
        self._units: dict[str, dict[str, Tensor]] = {}  # age, utility, mean; [H] each
        self._owed: dict[str, float] = {}
        self._young: dict[str, deque[tuple[int, int]]] = {}  # (when, how many were drawn), within the last maturity
        self._fresh: tuple[int, Tensor, nn.Module | None] | None = None  # drawn when, from which random state

    def prepare(self, network: Network) -> None:
        """Be ready to watch."""
        self._watch = ActivationMonitor(network, self._measure)

    def penalty(self, network: Network, batch: TensorDictBase) -> None:
        """No penalty; the first batch shows which units are hidden."""
        assert self._watch is not None
        if self._watch.confirm(batch):
            for unit in self._watch.hidden:
                empty = torch.zeros(unit_count(unit.module), device=network.device)
                self._units[unit.name] = {name: empty.clone() for name in ("age", "utility", "mean")}
                self._owed[unit.name] = 0.0
                self._young[unit.name] = deque([(0, len(empty))])

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Note what the units did, and replace those that are due."""
        assert self._watch is not None
        seen = self._watch.take()
        if not seen:
            return
        self._updates += 1
        modules = {unit.name: unit.module for unit in self._watch.units}
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
        """Ages, utilities and debts."""
        if self._watch is None or not self._watch.units:
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
        """Restore them."""
        if state:
            assert self._watch is not None
            self._watch.load_state_dict(state["watch"])
            self._updates, self._owed = state["updates"], state["owed"]
            device = self._watch.network.device
            self._units = {name: {k: v.to(device) for k, v in unit.items()} for name, unit in state["units"].items()}
            self._young = {name: deque(map(tuple, entries)) for name, entries in state["young"].items()}
            self._fresh = (*state["fresh"], None) if state["fresh"] else None

    def _measure(self, unit: TracedLayer, rows: Tensor, columns: Tensor) -> Tensor:
        """E|h| or E|h - its mean|, and E[h]. [2, in]."""
        if self.utility == "adaptable":
            centre = self._unbiased(self._units[unit.name], "mean")[columns]
            size = (rows - centre).abs().mean(0)
        else:
            size = rows.abs().mean(0)
        return torch.stack([size, rows.mean(0)])

    def _unbiased(self, state: dict[str, Tensor], name: str) -> Tensor:
        """A running mean as if it had not begun at zero when the unit was drawn."""
        return state[name] / (1 - self.decay ** state["age"]).clamp_min(1e-12)

    def _replace(self, network: Network, masks: dict[str, Tensor]) -> None:
        assert self._watch is not None
        units = self._watch.units
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
        redraw_units(network, units, whole_neurons(units, masks), fresh, self.moments)
        redraw_batch_norms(network, units, masks, fresh, self.moments)

    def _drawn(self, network: Network) -> nn.Module:
        """A fresh network, drawn anew before any of its rows would serve a second time."""
        if self._fresh is None or self._fresh[0] + self.maturity < self._updates:
            before = network.generator.get_state()
            self._fresh = self._updates, before, network.fresh()
        when, before, fresh = self._fresh
        if fresh is None:  # after a resume: the same one again
            now = network.generator.get_state()
            network.generator.set_state(before)
            fresh = network.fresh()
            network.generator.set_state(now)
            self._fresh = when, before, fresh
        return fresh


def _outgoing(unit: TracedLayer, modules: dict[str, nn.Module]) -> Tensor:
    """Mean magnitude of the weights that read each unit, summed over readers. [H]."""
    total = torch.zeros(unit_count(unit.module), device=next(unit.module.parameters()).device)
    for reader, columns in unit.outgoing.items():
        if reader in modules:
            weight = modules[reader].weight
            assert isinstance(weight, Tensor)
            total += per_unit(unit, columns.to(total.device), weight.abs().transpose(0, 1).flatten(1).mean(1))
    return total


def _incoming(unit: TracedLayer) -> Tensor:
    """Mean magnitude of each unit's own weights. [H]."""
    weight = unit.module.weight
    assert isinstance(weight, Tensor)
    return weight.abs().flatten(1).mean(1) if weight.ndim > 1 else weight.abs()


def _compensate(unit: TracedLayer, modules: dict[str, nn.Module], lost: Tensor) -> None:
    """Give the readers' biases what the units that go sent on average. ``lost``: [H]."""
    for reader, columns in unit.columns.items():
        module = modules[reader]
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.add_(module.weight @ lost[columns.to(lost.device)])
