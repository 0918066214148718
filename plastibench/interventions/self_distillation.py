"""Self-distillation: learn from a slow average of oneself (baseline of Lee et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.batch_outputs import outputs
from plastibench.nn.ema import EmaCopy
from plastibench.nn.network import Network


@register_intervention("self-distillation")
@dataclass
class SelfDistillation(Intervention):
    """λ·KL(softmax(teacher/T) ‖ softmax(network/T)) in the loss; the teacher is the moving average of the weights.

    ``reduction=batchmean`` is the mean divergence of a sample. ``mean`` also divides by the number of classes: what
    PyTorch's KLDivLoss does by default, and dojeon-ai/Hare-Tortoise with it, so that its λ of 1 is 0.01 of 100
    classes. ``distance=auto`` takes the mean squared difference of the outputs for networks of the roles ``critic``
    and ``actor``, whose outputs are no logits. Costs two forward passes more per update, on the batch without
    augmentation and in eval mode, and a copy of the network.
    """

    kind = "regularizer"
    extra_memory = 1.0  # copies of the parameters of vit-nano
    extra_compute = "2 forward passes per update"

    strength: float = option(1.0, "λ", low=0)
    momentum: float = option(0.999, "m of the teacher φ ← m·φ + (1−m)·θ, at every update", low=0, high=1)
    temperature: float = option(1.0, "T", low=1e-3)
    reduction: Literal["batchmean", "mean"] = option("batchmean", "mean over samples, or over samples and classes")
    distance: Literal["auto", "kl", "mse"] = option("auto", "between outputs; auto: by the network's role")

    def __post_init__(self) -> None:
        self._teacher = EmaCopy()

    def prepare(self, network: Network) -> None:
        """Copy the teacher."""
        self._teacher.of(network)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor:
        """The term of the loss; no gradient reaches the teacher."""
        with torch.no_grad():
            taught = outputs(network, self._teacher.of(network), batch)
        found = outputs(network, network.module, batch)
        by_role = "mse" if network.role in ("critic", "actor") else "kl"
        if (by_role if self.distance == "auto" else self.distance) == "mse":
            return self.strength * F.mse_loss(found, taught)
        ours, theirs = ((logits / self.temperature).log_softmax(-1) for logits in (found, taught))
        divergence = theirs.exp() * (theirs - ours)  # [..., K]
        return self.strength * (divergence.mean() if self.reduction == "mean" else divergence.sum(-1).mean())

    def after_update(self, network: Network) -> None:
        """The teacher follows."""
        self._teacher.follow(network, self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """The teacher."""
        return {"teacher": self._teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the teacher."""
        self._teacher.load_state_dict(state["teacher"])
