"""Shrink & Perturb (Ash & Adams 2020)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.interventions.base import Intervention, Report
from plastibench.layers.optimizer_state import forget_all
from plastibench.network import Network
from plastibench.options import option


@dataclass
class ShrinkPerturb(Intervention):
    """θ ← keep·θ + noise·θ', where θ' is a fresh draw or the stored initial weights.

    There is no bare α: repositories disagree whether 0.8 keeps 80 % (Ash & Adams, BBF) or 20 % (Lee et al.). All
    parameters take part, LayerNorm and position embeddings included, as in both sources; buffers are left alone.
    """

    keep: float = option(0.8, "factor of the current weights", low=0, high=1)
    noise: float = option(0.2, "factor of the other weights", low=0, high=1)
    source: Literal["fresh", "initial"] = option("fresh", "the other weights: newly drawn, or those of the start")

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
        others = self._initial or dict(network.fresh().named_parameters())
        for name, parameter in network.module.named_parameters():
            parameter.mul_(self.keep).add_(others[name], alpha=self.noise)
        forget_all(network.optimizer, list(network.module.parameters()))
        return Report(parameters=sum(p.numel() for p in network.module.parameters()))

    def state_dict(self) -> dict[str, Any]:
        """The stored initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = state["initial"]
