"""Selective weight reinitialisation: re-draw the least useful single weights (Hernandez-Garcia et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.interventions.base import Intervention, Report
from plastibench.interventions.criteria import lowest_fraction
from plastibench.layers.gradients import gradients, weights_of
from plastibench.layers.optimizer_state import MomentRule, forget
from plastibench.network import Network, as_batch
from plastibench.options import option


@dataclass
class SelectiveWeightReinit(Intervention):
    """Re-draw the share of every weight tensor with the lowest utility, as its module was initialised.

    Utility is ``|θ|``, or ``|θ · ∂L/∂θ|`` with the gradient of the mean loss over the representative batch. Every
    Linear and Conv2d takes part, output layers included; biases, norms and embeddings do not.

    Source: arXiv 2508.00212. Its formulas were not at hand and no code was found: that utilities are ranked within one
    tensor, this form of the two utilities, and re-drawing from the initial distribution are read from summaries of the
    paper, and the default share is a choice made here.
    """

    utility: Literal["gradient", "magnitude"] = option("gradient", "how useful a weight is: |θ·∂L/∂θ| or |θ|")
    share: float = option(0.1, "share of each tensor that is re-drawn, lowest utility first", low=0, high=1)
    moments: MomentRule = option("mean", "what becomes of the optimizer's moments of re-drawn weights")

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Rank, then re-draw."""
        weights = weights_of(network.module)
        utilities = self._utilities(network, as_batch(batch))
        fresh, report = network.fresh(), Report()
        for (name, weight), utility in zip(weights.items(), utilities, strict=True):
            mask = lowest_fraction(utility.flatten(), self.share).reshape(weight.shape)
            with torch.no_grad():
                weight.copy_(torch.where(mask, fresh.get_parameter(f"{name}.weight"), weight))
            forget(network.optimizer, weight, mask, self.moments)
            report.parameters += int(mask.sum())
        return report

    def _utilities(self, network: Network, batch: TensorDictBase) -> list[Tensor]:
        weights = list(weights_of(network.module).values())
        if self.utility == "magnitude":
            return [weight.detach().abs() for weight in weights]
        totals = [torch.zeros_like(weight) for weight in weights]
        for size, found in gradients(network, batch, weights):
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:
                    total.add_(gradient, alpha=size / len(batch))
        return [(weight.detach() * total).abs() for weight, total in zip(weights, totals, strict=True)]
