"""No intervention: the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention


@register_intervention("none")
@dataclass
class NoIntervention(Intervention):
    """Train without intervention: the baseline of every comparison."""

    kind = "baseline"
