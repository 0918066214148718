"""Rehearse: after any surgery, a few gradient steps on the new labels; shows how cheap a small drop is."""

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
    """As Distil, but the steps are on the training loss of the representative batch, with its own labels.

    A network that was re-drawn does well right after a few of these, so a small drop alone proves nothing.
    """

    kind = "wrapper"
    extra_compute = "20 gradient steps each time"

    def _objective(self, network: Network, batch: TensorDictBase) -> Objective:
        return lambda part: network.loss(network.module, part)
