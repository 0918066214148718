"""Self-distillation from a moving average of the network (baseline of Lee et al. 2024)."""

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
from plastibench.nn.batch_outputs import network_outputs
from plastibench.nn.ema import EmaCopy
from plastibench.nn.network import Network


@register_intervention("self-distillation")
@dataclass
class SelfDistillation(Intervention):
    """Add the KL divergence from a moving average of the network to the loss (baseline of Lee et al. 2024).

    The term is λ·KL(softmax(teacher/T) ‖ softmax(network/T)); the teacher is a moving average of the weights.
    ``reduction="batchmean"`` averages over samples. ``"mean"`` also divides by the number of classes, as PyTorch's
    KLDivLoss does by default and hence dojeon-ai/Hare-Tortoise does: its λ=1 corresponds to λ=0.01 here with 100
    classes. ``distance="auto"`` uses the mean squared error for the roles ``critic`` and ``actor``, whose outputs are
    not logits.

    Costs two extra forward passes per update, on the batch without augmentation and in eval mode, and a copy of the
    network.
    """

    kind = "regularizer"
    extra_memory = 1.0  # copies of the parameters of vit-nano
    extra_compute = "2 forward passes per update"

    strength: float = option(1.0, "distillation strength λ", low=0)
    momentum: float = option(0.999, "momentum m of the teacher φ ← m·φ + (1−m)·θ, at every update", low=0, high=1)
    temperature: float = option(1.0, "temperature T", low=1e-3)
    reduction: Literal["batchmean", "mean"] = option("batchmean", "mean over samples, or over samples and classes")
    distance: Literal["auto", "kl", "mse"] = option(
        "auto", "distance between outputs; auto: mse for critics and actors, else kl"
    )

    def __post_init__(self) -> None:
        self._teacher = EmaCopy()

    def prepare(self, network: Network) -> None:
        """Create the teacher as a copy of the network."""
        self._teacher.module_for(network)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor:
        """Return the distillation term. No gradient reaches the teacher."""
        with torch.no_grad():
            taught = network_outputs(network, self._teacher.module_for(network), batch)
        found = network_outputs(network, network.module, batch)
        by_role = "mse" if network.role in ("critic", "actor") else "kl"
        if (by_role if self.distance == "auto" else self.distance) == "mse":
            return self.strength * F.mse_loss(found, taught)
        ours, theirs = ((logits / self.temperature).log_softmax(-1) for logits in (found, taught))
        divergence = theirs.exp() * (theirs - ours)  # [..., K]
        return self.strength * (divergence.mean() if self.reduction == "mean" else divergence.sum(-1).mean())

    def after_update(self, network: Network) -> None:
        """Update the moving average."""
        self._teacher.update(network, self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher."""
        return {"teacher": self._teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the teacher."""
        self._teacher.load_state_dict(state["teacher"])
