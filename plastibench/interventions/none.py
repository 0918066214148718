"""No intervention: the base run of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention


@register_intervention("none")
@dataclass
class NoIntervention(Intervention):
    """Train on as before; the base of every comparison."""

    kind = "baseline"
