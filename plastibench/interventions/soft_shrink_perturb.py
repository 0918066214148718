"""Soft Shrink & Perturb: a little shrinking and perturbing at every update (Juliani & Ash 2024)."""

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
from plastibench.nn.parameters import initial_values, trainable_parameters


@register_intervention("soft-shrink-perturb")
@dataclass
class SoftShrinkPerturb(Intervention):
    """Shrink & Perturb a little after every update: θ ← keep·θ + noise·θ', θ' initial weights (Juliani & Ash 2024).

    All trained parameters are changed, including LayerNorms and position embeddings. The optimizer state is kept.
    Repositories differ in θ':

    - ``initial``: the initial weights. Costs one multiplication and one addition per parameter.
    - ``fresh``: newly initialized weights, so that θ' is independent noise. Builds the network again at every update,
      which is often slower than the update itself.

    To add noise of a fixed standard deviation instead, use ``shrink-perturb-noise``.
    """

    kind = "optimizer"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    keep: float = option(0.999999, "factor of the current weights θ", low=0, high=1)
    noise: float = option(1e-6, "factor of the added weights θ'", low=0, high=1)
    source: Literal["initial", "fresh"] = option(
        "initial", "added weights: the initial weights of the run, or freshly initialized"
    )

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Store the initial weights if they are needed."""
        if self.source == "initial":
            initial_values(self._initial, trainable_parameters(network.module))

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Shrink and perturb all trained parameters."""
        parameters = trainable_parameters(network.module)
        if self.source == "initial":
            others = initial_values(self._initial, parameters)
        else:
            fresh = dict(network.fresh().named_parameters())
            others = [fresh[name].detach() for name in parameters]
        values = list(parameters.values())
        torch._foreach_mul_(values, self.keep)
        torch._foreach_add_(values, others, alpha=self.noise)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = dict(state["initial"])
