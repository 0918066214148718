"""No intervention: the base run of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from plastibench.interventions.base import Intervention


@dataclass
class NoIntervention(Intervention):
    """Train on as before; the base of every comparison."""
