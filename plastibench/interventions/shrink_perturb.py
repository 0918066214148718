"""Shrink & Perturb (Ash & Adams 2020), also as SR-SPR (D'Oro et al. 2023) and BBF (Schwarzer et al. 2023) use it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.branches import renewable
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import forget_all
from plastibench.nn.parameters import remembered
from plastibench.nn.units import unit_count


@register_intervention("shrink-perturb")
@register_intervention(
    "shrink-perturb-keep80",
    "Shrink & Perturb with the paper's α=0.8 read as in Ash & Adams 2020: keep 80 %",
    keep=0.8,
    noise=0.2,
)
@register_intervention(
    "shrink-perturb-keep20",
    "Shrink & Perturb with the paper's α=0.8 read as in Lee et al. 2024: keep 20 %, add 80 % of the initial weights",
    keep=0.2,
    noise=0.8,
    source="initial",
)
@register_intervention(
    "sr-spr",
    "Shrink & Perturb that keeps 80 % and reinitializes the output layers (D'Oro et al. 2023); use with "
    "--every and --until",
    keep=0.8,
    noise=0.2,
    heads="redraw",
)
@register_intervention(
    "bbf",
    "Shrink & Perturb that keeps 50 % and reinitializes the output layers (Schwarzer et al. 2023); use "
    "with --every and --until",
    keep=0.5,
    noise=0.5,
    heads="redraw",
)
@dataclass
class ShrinkPerturb(Intervention):
    """θ ← keep·θ + noise·θ', where θ' is a fresh draw or the stored initial weights.

    There is no bare α: repositories disagree whether 0.8 keeps 80 % (Ash & Adams, BBF) or 20 % (Lee et al.). All
    trained parameters take part, LayerNorm and position embeddings included, as in both sources; buffers and frozen
    parameters are left alone.

    SR-SPR (0.8/0.2) and BBF (0.5/0.5) re-draw all behind the encoder instead of mixing it. Here ``heads="redraw"``
    re-draws the output layers, and every optimizer state starts anew (BBF's code keeps that of the encoder).
    """

    kind = "reset"
    extra_compute = "1 copy if noise is initial weights"

    keep: float = option(0.8, "factor of the current weights", low=0, high=1)
    noise: float = option(0.2, "factor of the other weights", low=0, high=1)
    source: Literal["fresh", "initial"] = option("fresh", "the other weights: newly drawn, or those of the start")
    heads: Literal["same", "redraw"] | None = option(
        None, "output layers: treated the same as the rest (none likewise), or re-drawn"
    )

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Keep the initial weights, where they are the source."""
        if self.source == "initial":
            self._initial = {name: p.detach().clone() for name, p in network.module.named_parameters()}

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Shrink and perturb; the optimizer's state starts anew."""
        if self.source == "initial" and not self._initial:
            self.prepare(network)
        parameters = renewable(network.module)
        report = Report(parameters=sum(p.numel() for p in parameters.values()))
        redrawn = self._redrawn(network, batch)
        fresh = dict(network.fresh().named_parameters()) if redrawn or not self._initial else {}
        if self._initial:  # what another intervention has added since begins as it is now
            remembered(self._initial, dict(network.module.named_parameters()))
        others = self._initial or fresh
        for name, parameter in parameters.items():
            if name.rpartition(".")[0] in redrawn:
                parameter.copy_(fresh[name])
            else:
                parameter.mul_(self.keep).add_(others[name], alpha=self.noise)
        forget_all(network.optimizer, list(parameters.values()))
        for name, units in redrawn.items():
            report.units[name] = torch.ones(units, dtype=torch.bool, device=network.device)
            report.note(name, revived=float(units), units=float(units))
        return report

    def _redrawn(self, network: Network, batch: TensorDictBase) -> dict[str, int]:
        """Output layers to re-draw, and how many units each has."""
        if self.heads != "redraw":
            return {}
        return {unit.name: unit_count(unit.module) for unit in trace(network, as_batch(batch)) if unit.output}

    def state_dict(self) -> dict[str, Any]:
        """The stored initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = state["initial"]
