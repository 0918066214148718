"""Spectra of matrices, and how many of their values count. What is not finite in yields NaN, and raises nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values in float64, largest first."""
    matrix = matrix.double()
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_full((min(matrix.shape),), math.nan)
    return torch.linalg.svdvals(matrix)


def eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix, smallest first; those that rounding made negative are 0."""
    if not bool(torch.isfinite(gram).all()):
        return torch.full_like(gram[0], math.nan)
    return torch.linalg.eigvalsh(gram).clamp_min(0)


def effective_rank(singular: Tensor) -> float:
    """Exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 where all are 0."""
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular.double() / total).sum().exp())


def count_for_fraction(values: Tensor, share: float) -> float:
    """How many of the largest values hold this share of the sum of all; 0 where the sum is 0."""
    total = values.sum()
    if not bool(torch.isfinite(total)):
        return math.nan
    if total == 0:
        return 0.0
    return float((values.sort(descending=True).values.cumsum(0) < (share - 1e-12) * total).sum() + 1)
