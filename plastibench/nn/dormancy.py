"""Which units are dormant: plain functions from statistics to scores, and from scores to masks (paper 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plastibench.nn.unit_statistics import Statistics

Criterion = Literal[
    "redo", "regrama", "regrama-post", "regrama-weight", "low-gradient-quantile", "random", "weight-norm"
]
BY_THRESHOLD = ("redo", "regrama", "regrama-post", "regrama-weight")
NEEDS_DATA = (*BY_THRESHOLD, "low-gradient-quantile")
_SOURCES = {
    "redo": "activation",
    "regrama": "pre_gradient",
    "regrama-post": "post_gradient",
    "regrama-weight": "weight_gradient",
    "low-gradient-quantile": "pre_gradient",
    "weight-norm": "weight_norm",
}


def normalised(values: Tensor) -> Tensor:
    """Scores relative to the layer's mean, ``s_i = v_i / mean_k v_k``, as ReDo and ReGraMa define them. [H]."""
    return values / (values.mean() + 1e-9 * values.max().clamp_min(1e-30))


def below_threshold(scores: Tensor, tau: float) -> Tensor:
    """Units with ``s_i <= τ``. [H], boolean."""
    return scores <= tau


def lowest_fraction(scores: Tensor, quantile: float) -> Tensor:
    """The ``floor(quantile·H)`` units with the smallest scores; ties go to the lower index. [H], boolean."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    count = int(quantile * len(scores) + 1e-9)
    mask[torch.argsort(scores, stable=True)[:count]] = True
    return mask


def dormant(
    criterion: Criterion,
    statistics: Statistics,
    *,
    tau: float,
    quantile: float,
    generator: torch.Generator,
    groups: int = 1,
) -> Tensor:
    """Mask of the units to revive in one module. [H], boolean.

    Args:
        criterion: How units are scored; the first four compare with ``tau``, the others take the lowest ``quantile``.
        statistics: The module's statistics.
        tau: Threshold on normalised scores.
        quantile: Share of units, between 0 and 1.
        generator: CPU generator for ``random``.
        groups: Consecutive parts of the module that are judged apart (3 for q, k and v of a joint projection).
    """
    if criterion == "random":
        scores = torch.rand(len(statistics.activation), generator=generator).to(statistics.activation.device)
    else:
        scores = getattr(statistics, _SOURCES[criterion])
    judged = [
        below_threshold(normalised(part), tau) if criterion in BY_THRESHOLD else lowest_fraction(part, quantile)
        for part in scores.chunk(groups)
    ]
    return torch.cat(judged)
