"""Singular values, eigenvalues and ranks computed from them. Non-finite input gives NaN, not an error."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Compute singular values in float64, in descending order."""
    matrix = matrix.double()
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_full((min(matrix.shape),), math.nan)
    return torch.linalg.svdvals(matrix)


def eigenvalues(gram: Tensor) -> Tensor:
    """Compute eigenvalues of a positive semi-definite matrix in ascending order; negative rounding errors become 0."""
    if not bool(torch.isfinite(gram).all()):
        return torch.full_like(gram[0], math.nan)
    return torch.linalg.eigvalsh(gram).clamp_min(0)


def effective_rank(singular: Tensor) -> float:
    """Compute exp of the entropy of the normalized singular values (Roy & Vetterli 2007); 0 if all are 0."""
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular.double() / total).sum().exp())


def count_for_fraction(values: Tensor, fraction: float) -> float:
    """Count how many of the largest values hold a fraction of the sum of all; 0 if the sum is 0."""
    total = values.sum()
    if not bool(torch.isfinite(total)):
        return math.nan
    if total == 0:
        return 0.0
    return float((values.sort(descending=True).values.cumsum(0) < (fraction - 1e-12) * total).sum() + 1)
