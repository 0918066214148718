"""Select dormant units: from statistics to scores, and from scores to masks (paper 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plastibench.nn.unit_statistics import UnitStatistics

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


def normalized_scores(values: Tensor) -> Tensor:
    """Scores relative to the mean of the layer, ``s_i = v_i / mean_k v_k`` (ReDo, ReGraMa). [H]."""
    return values / (values.mean() + 1e-9 * values.max().clamp_min(1e-30))


def below_threshold(scores: Tensor, tau: float) -> Tensor:
    """Mask of the units with ``s_i <= τ``. [H], boolean."""
    return scores <= tau


def lowest_fraction(scores: Tensor, quantile: float) -> Tensor:
    """Mask of the ``floor(quantile·H)`` units with the lowest scores; ties go to the lower index. [H], boolean."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    count = int(quantile * len(scores) + 1e-9)
    mask[torch.argsort(scores, stable=True)[:count]] = True
    return mask


def dormant_units(
    criterion: Criterion,
    statistics: UnitStatistics,
    *,
    tau: float,
    quantile: float,
    generator: torch.Generator,
    groups: int = 1,
) -> Tensor:
    """Mask of the units of one layer to revive. [H], boolean.

    Args:
        criterion: How to score units. The criteria in ``BY_THRESHOLD`` compare with ``tau``; the others select the
            lowest ``quantile``.
        statistics: The statistics of the layer.
        tau: Threshold on normalized scores.
        quantile: Fraction of units, between 0 and 1.
        generator: CPU generator for ``random``.
        groups: Number of consecutive parts of the layer that are scored separately (3 for a joint q, k, v projection).
    """
    if criterion == "random":
        scores = torch.rand(len(statistics.activation), generator=generator).to(statistics.activation.device)
    else:
        scores = getattr(statistics, _SOURCES[criterion])
    masks = [
        below_threshold(normalized_scores(part), tau) if criterion in BY_THRESHOLD else lowest_fraction(part, quantile)
        for part in scores.chunk(groups)
    ]
    return torch.cat(masks)
