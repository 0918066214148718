"""Rehearse: after another intervention, take a few gradient steps on the new labels; a control."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDictBase

from plastibench.config.registry import register_intervention
from plastibench.interventions.distil import Distil
from plastibench.nn.finetune import Objective
from plastibench.nn.network import Network


@register_intervention(
    "rehearse",
    "Apply another intervention (default low-gradient-quantile), then take 20 gradient steps on the new "
    "labels (a control)",
)
@register_intervention("reset-rehearse", "Full reset, then rehearse", inner="reset")
@dataclass
class Rehearse(Distil):
    """Apply another intervention, then take Adam steps on the training loss of the representative batch.

    A control: even after a full reset, a few of these steps give high accuracy right after the intervention, so a small
    drop alone is not evidence for a method. The options are those of Distil.
    """

    kind = "wrapper"
    extra_compute = "20 gradient steps per intervention"

    def _objective(self, network: Network, batch: TensorDictBase) -> Objective:
        return lambda part: network.loss(network.module, part)
