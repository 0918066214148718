"""Selective weight reinitialization of the least useful individual weights (Hernandez-Garcia et al. 2025)."""

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
from plastibench.nn.loss_gradients import chunk_gradients
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import MomentRule, reset_state
from plastibench.nn.parameters import trainable_parameters


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
    """Reinitialize the entries of each parameter tensor that have the lowest utility, every ``interval`` updates.

    The utility of a weight is ``|θ · ∂L/∂θ|``, with the gradient of the latest update, or ``|θ|``. ``pruning`` selects:

    - ``threshold``: entries whose utility is at most ``factor`` times the mean of their tensor.
    - ``proportional``: the fraction ``factor`` of the entries with the lowest utility, rounded up or down at random.

    Selected entries are replaced with fresh ones, or with the mean of their initial distribution (0, or 1 for the scale
    of a norm). With ``interval=0`` the method acts at the interventions of the run, for example at task boundaries, and
    uses the gradient of the mean loss over the representative batch.

    All trained parameters are changed, including biases, norms, tokens and position embeddings. Exceptions: parameters
    whose initialization is unknown and, if the utility uses gradients, embedding tables (``nn.Embedding``), of which a
    batch uses only some rows.

    Source: arXiv 2508.00212 and the authors' code, JFernando4/collas_2025_swr_paper. The defaults are their settings
    for vision transformers (incremental CIFAR-100). Their SGD keeps the momentum of reinitialized weights; here
    ``moments`` resets it, because Adam's moments would move new weights in the direction of the old ones.
    """

    kind = "weights"

    utility: Literal["gradient", "magnitude"] = option("gradient", "utility of a weight: |θ·∂L/∂θ| or |θ|")
    pruning: Literal["threshold", "proportional"] = option(
        "threshold", "reinitialize weights with utility below factor·mean, or the lowest fraction"
    )
    factor: float = option(
        5e-4, "for threshold: multiple of the mean utility; for proportional: fraction of the entries", low=0
    )
    replacement: Literal["resample", "mean"] = option(
        "resample", "new value: resampled, or the mean of the initial distribution"
    )
    interval: int = option(128, "updates between reinitializations; 0: act at the interventions of the run", low=0)
    moments: MomentRule = option(
        "mean", "new optimizer moments of reinitialized weights: mean of the rest, zero, or restart the step count"
    )

    def __post_init__(self) -> None:
        if self.pruning == "proportional" and self.factor > 1:
            raise ValueError(f"factor is {self.factor}; as a fraction of the entries it must be at most 1")
        self._updates = 0

    def after_update(self, network: Network) -> None:
        """Reinitialize every ``interval`` updates."""
        self._updates += 1
        if self.interval and self._updates % self.interval == 0:
            self._redraw(
                network,
                {name: p.grad for name, p in trainable_parameters(network.module).items() if p.grad is not None},
            )

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Reinitialize if ``interval`` is 0."""
        if self.interval:
            return Report()
        parameters = trainable_parameters(network.module)
        batch = as_batch(batch)
        totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
        if self.utility == "gradient":
            for size, found in chunk_gradients(network, batch, list(parameters.values())):
                for total, gradient in zip(totals.values(), found, strict=True):
                    if gradient is not None:
                        total.add_(gradient, alpha=size / len(batch))
        return Report(parameters=self._redraw(network, totals))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of updates."""
        self._updates = state["updates"]

    @torch.no_grad()
    def _redraw(self, network: Network, by: Mapping[str, Tensor]) -> int:
        """Reinitialize entries, given the gradients by parameter name. Return how many."""
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
            reset_state(network.optimizer, parameter, mask, self.moments)
            count += int(mask.sum())
        return count

    def _looked_up(self, module: nn.Module) -> set[str]:
        """Return the embedding tables. A row that the batch does not use has no gradient and an unknown utility."""
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
