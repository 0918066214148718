"""Knowledge evolution: a fixed part of every weight tensor survives, the rest is re-drawn (Taha et al. 2021)."""

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
from plastibench.nn.dataflow import trace
from plastibench.nn.loss_gradients import weights_of
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import MomentRule, forget
from plastibench.nn.selectors import beginnings


@register_intervention("knowledge-evolution")
@dataclass
class KnowledgeEvolution(Intervention):
    """Split the weights of every Linear and Conv2d once into a part that stays and one that is re-drawn each time.

    - ``weight``: every single weight stays with probability ``split`` (WELS of the paper).
    - ``kernel``: the first ``split`` of the rows and columns stay together, so that they are a narrower network by
      themselves (KELS). Inputs of the network and its output layers are not split; a joint query-key-value projection
      is split in each of its thirds.

    Biases, norms and embeddings are left alone. Followed: the release of Zhou et al. 2022 (hlml/fortuitous_forgetting).
    """

    kind = "reset"
    extra_memory = 0.25  # copies of the parameters of vit-nano

    split: float = option(0.8, "share that stays", low=0, high=1)
    level: Literal["weight", "kernel"] = option(
        "weight", "split single weights at random, or the first rows and columns"
    )
    moments: MomentRule = option("mean", "what becomes of the optimizer's moments of re-drawn weights")

    def __post_init__(self) -> None:
        self._stays: dict[str, Tensor] = {}

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Re-draw what does not stay; the split is drawn at the first call."""
        weights = weights_of(network.module)
        if not self._stays:
            self._stays = self._split(network, as_batch(batch))
        fresh, report = network.fresh(), Report()
        for name, stays in self._stays.items():
            weight, gone = weights[name], ~stays.to(network.device)
            weight.copy_(torch.where(gone, fresh.get_parameter(f"{name}.weight"), weight))
            forget(network.optimizer, weight, gone, self.moments)
            report.parameters += int(gone.sum())
        return report

    def state_dict(self) -> dict[str, Any]:
        """Which weights stay."""
        return {"stays": copy.copy(self._stays)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore which weights stay."""
        self._stays = dict(state["stays"])

    def _split(self, network: Network, batch: TensorDictBase) -> dict[str, Tensor]:
        """Mask over each weight, True where it stays, on the CPU."""
        weights = weights_of(network.module)
        if self.level == "weight":
            draws = {name: torch.rand(weight.shape, generator=network.generator) for name, weight in weights.items()}
            return {name: draw < self.split for name, draw in draws.items()}
        units = trace(network, batch)
        outputs = [unit.name for unit in units if unit.output]
        first = beginnings([unit.name for unit in units if unit.name in weights], outputs)
        stays = {}
        for name, weight in weights.items():
            mask = torch.zeros(weight.shape, dtype=torch.bool)
            kept = mask.shape[1] if name in first else _count(self.split, mask.shape[1])
            for part in mask.chunk(3 if name.endswith("qkv") else 1):
                part[: len(part) if name in outputs else _count(self.split, len(part)), :kept] = True
            stays[name] = mask
        return stays


def _count(share: float, of: int) -> int:
    return math.ceil(share * of - 1e-9)
