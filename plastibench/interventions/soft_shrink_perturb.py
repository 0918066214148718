"""Shrink & Perturb in tiny steps at every update (Juliani & Ash 2024)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.parameters import remembered, trained


@register_intervention("soft-shrink-perturb")
@dataclass
class SoftShrinkPerturb(Intervention):
    """θ ← keep·θ + noise·θ' after every update, where θ' are the stored initial weights or a fresh draw.

    All trained parameters take part, LayerNorm and position embeddings included; optimizer state stays. ``fresh``
    builds the whole network anew at every update, which is slow (often slower than the update itself) and gives θ' as
    independent noise; ``initial`` costs one multiplication and one addition. Both readings exist in repositories; noise
    of a given size instead of an initialisation is ``shrink-perturb-noise``.
    """

    kind = "optimizer"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    keep: float = option(0.999999, "factor of the current weights", low=0, high=1)
    noise: float = option(1e-6, "factor of the other weights", low=0, high=1)
    source: Literal["initial", "fresh"] = option("initial", "the other weights: those of the start, or newly drawn")

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Keep the initial weights, where they are the source."""
        if self.source == "initial":
            remembered(self._initial, trained(network.module))

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Shrink and perturb."""
        parameters = trained(network.module)
        if self.source == "initial":
            others = remembered(self._initial, parameters)
        else:
            fresh = dict(network.fresh().named_parameters())
            others = [fresh[name].detach() for name in parameters]
        values = list(parameters.values())
        torch._foreach_mul_(values, self.keep)
        torch._foreach_add_(values, others, alpha=self.noise)

    def state_dict(self) -> dict[str, Any]:
        """The stored initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = dict(state["initial"])
