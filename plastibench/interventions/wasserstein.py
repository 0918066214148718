"""Wasserstein regularizer: preserve the distribution of the initial weights (Lewandowski et al. 2024)."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.parameters import initial_values, trainable_parameters


@register_intervention("wasserstein")
@dataclass
class Wasserstein(Intervention):
    """Add the squared distance between sorted weights and sorted initial weights to the loss (Lewandowski et al. 2024).

    The term λ Σ_i (θ_(i) − θ₀_(i))² over the sorted entries of each parameter tensor is, up to a factor, the squared
    2-Wasserstein distance between the current and the initial entries. Unlike in L2 Init, an entry may move freely if
    another entry takes its value. For constant tensors, such as zero biases, the term is that of L2 Init.

    The authors' code is not public. ``reduction="sum"`` follows the formula; ``mean`` divides the sum of each tensor by
    its number of entries, as the baseline of Chung et al. 2024 does (wechu/parseval_reg). Each application sorts every
    tensor. With ``every`` > 1 the term is applied every ``every`` updates and multiplied by ``every``.
    """

    kind = "regularizer"
    extra_memory = 1.0  # copies of the parameters of vit-nano
    extra_compute = "sorts every tensor at every update"

    strength: float = option(1e-4, "regularization strength λ", low=0)
    reduction: Literal["sum", "mean"] = option("sum", "sum or mean over the entries of each tensor")
    every: int = option(1, "updates between applications", low=1)
    vectors: bool = option(True, "also regularize one-dimensional tensors (biases)")
    norms: bool = option(False, "also regularize the parameters of normalization layers")

    def __post_init__(self) -> None:
        self._sorted: dict[str, Tensor] = {}
        self._updates = 0

    def prepare(self, network: Network) -> None:
        """Store the sorted initial weights."""
        initial_values(self._sorted, self._entries(network), _ascending)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """Return the regularization term, if due. Tensors of equal size are sorted together."""
        self._updates += 1
        if self._updates % self.every:
            return None
        entries = self._entries(network)
        initial = dict(zip(entries, initial_values(self._sorted, entries, _ascending), strict=True))
        sizes: dict[int, list[str]] = defaultdict(list)
        for name, values in entries.items():
            sizes[len(values)].append(name)
        total: Tensor | None = None
        for size, names in sizes.items():
            now = torch.stack([entries[name] for name in names]).sort(1).values  # [tensors, entries]
            distance = (now - torch.stack([initial[name] for name in names])).square().sum()
            distance = distance / size if self.reduction == "mean" else distance
            total = distance if total is None else total + distance
        return None if total is None else self.strength * self.every * total

    def state_dict(self) -> dict[str, Any]:
        """Return the sorted initial weights and the number of updates."""
        return {"sorted": copy.copy(self._sorted), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sorted initial weights and the number of updates."""
        self._sorted, self._updates = dict(state["sorted"]), state["updates"]

    def _entries(self, network: Network) -> dict[str, Tensor]:
        parameters = trainable_parameters(network.module, norms=self.norms)
        return {name: p.flatten() for name, p in parameters.items() if self.vectors or p.ndim > 1}


def _ascending(values: Tensor) -> Tensor:
    return values.sort().values
