"""Selective weight reinitialisation: re-draw the least useful single weights (Hernandez-Garcia et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.loss_gradients import gradients
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import MomentRule, forget
from plastibench.nn.parameters import trained


@register_intervention(
    "selective-weight-reinit", "Reinitialize individual weights with small |θ·∂L/∂θ| (Hernandez-Garcia et al. 2025)"
)
@register_intervention(
    "selective-weight-reinit-magnitude",
    "Set individual weights with small |θ| to the mean of their initial distribution (Hernandez-Garcia et al. 2025)",
    utility="magnitude",
    factor=1e-3,
    replacement="mean",
)
@dataclass
class SelectiveWeightReinit(Intervention):
    """Every ``interval`` updates, re-draw the entries of each parameter tensor that have the lowest utility.

    Utility is ``|θ · ∂L/∂θ|``, with the gradient of the update that was just made, or ``|θ|``. ``threshold`` re-draws
    entries whose utility is at most ``factor`` times the tensor's mean; ``proportional`` the share ``factor`` with the
    lowest, what is left of a whole number by chance. All trained parameters take part, biases, norms, tokens and
    position embeddings included, but for those of which nothing says how they were drawn, and, where gradients decide,
    tables of which a batch uses some rows (``nn.Embedding``). ``replacement``: a fresh draw, or the
    mean of the initial distribution (0, and 1 for the scale of a norm). With ``interval=0`` it acts when the run
    intervenes instead, as at task switches, by the gradient of the mean loss over the representative batch.

    Source: arXiv 2508.00212 and the authors' code, JFernando4/collas_2025_swr_paper, whose settings for vision
    transformers (incremental CIFAR-100) are the defaults here. Their SGD keeps its momentum for re-drawn weights; here
    ``moments`` says what becomes of an optimizer's, because Adam's would carry new weights after the old ones.
    """

    kind = "weights"

    utility: Literal["gradient", "magnitude"] = option("gradient", "how useful a weight is: |θ·∂L/∂θ| or |θ|")
    pruning: Literal["threshold", "proportional"] = option("threshold", "below factor·mean, or the lowest share")
    factor: float = option(5e-4, "of the tensor's mean utility, or of its entries", low=0)
    replacement: Literal["resample", "mean"] = option("resample", "a fresh draw, or the initial distribution's mean")
    interval: int = option(128, "updates between re-initialisations; 0: when the run intervenes", low=0)
    moments: MomentRule = option("mean", "what becomes of the optimizer's moments of re-drawn weights")

    def __post_init__(self) -> None:
        if self.pruning == "proportional" and self.factor > 1:
            raise ValueError(f"factor is {self.factor}; as a share of the entries it must be at most 1")
        self._updates = 0

    def after_update(self, network: Network) -> None:
        """Re-draw, where it is time."""
        self._updates += 1
        if self.interval and self._updates % self.interval == 0:
            self._redraw(network, {name: p.grad for name, p in trained(network.module).items() if p.grad is not None})

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Re-draw, where it is done here."""
        if self.interval:
            return Report()
        parameters = trained(network.module)
        batch = as_batch(batch)
        totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
        if self.utility == "gradient":
            for size, found in gradients(network, batch, list(parameters.values())):
                for total, gradient in zip(totals.values(), found, strict=True):
                    if gradient is not None:
                        total.add_(gradient, alpha=size / len(batch))
        return Report(parameters=self._redraw(network, totals))

    def state_dict(self) -> dict[str, Any]:
        """Updates seen."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._updates = state["updates"]

    @torch.no_grad()
    def _redraw(self, network: Network, by: Mapping[str, Tensor]) -> int:
        """Re-draw by gradients of the parameters; how many entries were."""
        fresh, spared, count = network.fresh(), {*network.not_reinitializable(), *self._looked_up(network.module)}, 0
        for name, parameter in network.module.named_parameters():
            if name not in by or name in spared:
                continue
            utility = parameter.abs() if self.utility == "magnitude" else (parameter * by[name]).abs()
            mask = self._least(utility, network.generator)
            new: Tensor = fresh.get_parameter(name)
            if self.replacement == "mean":
                new = new if bool((new == new.flatten()[0]).all()) else torch.zeros_like(new)
            parameter.copy_(torch.where(mask, new, parameter))
            forget(network.optimizer, parameter, mask, self.moments)
            count += int(mask.sum())
        return count

    def _looked_up(self, module: nn.Module) -> set[str]:
        """Weights of which a batch uses some rows: no gradient says nothing of the others."""
        if self.utility == "magnitude":
            return set()
        tables = [child for child in module.modules() if isinstance(child, nn.Embedding | nn.EmbeddingBag)]
        theirs = {id(p) for table in tables for p in table.parameters()}
        return {name for name, p in module.named_parameters() if id(p) in theirs}

    def _least(self, utility: Tensor, generator: torch.Generator) -> Tensor:
        if self.pruning == "threshold":
            return utility <= self.factor * utility.mean()
        whole, rest = divmod(self.factor * utility.numel(), 1)
        count = int(whole) + int(torch.rand((), generator=generator) < rest)
        mask = torch.zeros(utility.numel(), dtype=torch.bool, device=utility.device)
        mask[torch.argsort(utility.flatten(), stable=True)[:count]] = True
        return mask.reshape(utility.shape)
