"""Knowledge evolution: keep a fixed part of every weight tensor, reinitialize the rest (Taha et al. 2021)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.blocks import input_layers
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import MomentRule, reset_state
from plastibench.nn.parameters import layer_weights


@register_intervention("knowledge-evolution")
@dataclass
class KnowledgeEvolution(Intervention):
    """Reinitialize all weights except a fixed random 80 % (Taha et al. 2021; Zhou et al. 2022).

    The first intervention splits the weights of every Linear and Conv2d into a part that is kept and a part that is
    reinitialized at every intervention:

    - ``weight``: each weight is kept with probability ``split`` (WELS in the paper).
    - ``kernel``: the first fraction ``split`` of the rows and columns is kept, so that the kept weights form a narrower
      network (KELS in the paper). The inputs of the first layers and the output layers are not split. A joint
      query-key-value projection is split within each of its three parts.

    If layers are added or change their shape later, their weights are split at the next intervention.

    Biases, norms and embeddings are kept. Follows the code of Zhou et al. 2022 (hlml/fortuitous_forgetting).
    """

    kind = "reset"
    extra_memory = 0.25  # copies of the parameters of vit-nano

    split: float = option(0.8, "fraction of the weights that is kept", low=0, high=1)
    level: Literal["weight", "kernel"] = option(
        "weight", "keep individual weights at random, or the first rows and columns"
    )
    moments: MomentRule = option(
        "mean", "new optimizer moments of reinitialized weights: mean of the rest, zero, or restart the step count"
    )

    def __post_init__(self) -> None:
        self._stays: dict[str, Tensor] = {}

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Reinitialize the weights that are not kept. The first call draws the split."""
        weights = layer_weights(network.module)
        if {name: mask.shape for name, mask in self._stays.items()} != {name: w.shape for name, w in weights.items()}:
            new, old = self._split(network, as_batch(batch)), self._stays
            same = {name for name, mask in new.items() if name in old and old[name].shape == mask.shape}
            self._stays = {name: old[name] if name in same else mask for name, mask in new.items()}
        fresh, report = network.fresh(), Report()
        for name, stays in self._stays.items():
            weight, gone = weights[name], ~stays.to(network.device)
            weight.copy_(torch.where(gone, fresh.get_parameter(f"{name}.weight"), weight))
            reset_state(network.optimizer, weight, gone, self.moments)
            report.parameters += int(gone.sum())
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return which weights are kept."""
        return {"stays": copy.copy(self._stays)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore which weights are kept."""
        self._stays = dict(state["stays"])

    def _split(self, network: Network, batch: TensorDictBase) -> dict[str, Tensor]:
        """Return a mask of the kept entries for each weight, on the CPU."""
        weights = layer_weights(network.module)
        if self.level == "weight":
            draws = {name: torch.rand(weight.shape, generator=network.generator) for name, weight in weights.items()}
            return {name: draw < self.split for name, draw in draws.items()}
        units = trace(network, batch)
        outputs = [unit.name for unit in units if unit.output]
        first = input_layers([unit.name for unit in units if unit.name in weights], outputs)
        stays = {}
        for name, weight in weights.items():
            mask = torch.zeros(weight.shape, dtype=torch.bool)
            kept = mask.shape[1] if name in first else _count(self.split, mask.shape[1])
            for part in mask.chunk(3 if name.endswith("qkv") else 1):
                part[: len(part) if name in outputs else _count(self.split, len(part)), :kept] = True
            stays[name] = mask
        return stays


def _count(fraction: float, total: int) -> int:
    return math.ceil(fraction * total - 1e-9)
