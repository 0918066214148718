"""Ranks of representations, each under the name of its definition (names are often confused in published code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.layers.trace import Traced
from plastibench.metrics.activity import Tally
from plastibench.metrics.plasticity import Health, features
from plastibench.network import Network

EPSILON = 0.01  # of feature-rank


def head_ranks(network: Network, batch: TensorDictBase, units: Sequence[Traced]) -> Health:
    """Ranks of what the head receives.

    Args:
        network: The network; left as it was.
        batch: Probe batch; at least twice as many samples as the head has inputs, or the ranks count samples.
        units: From :func:`plastibench.layers.trace.trace`.
    """
    return Health(overall=feature_ranks(features(network, batch, next(unit for unit in units if unit.output))))


def layer_ranks(found: Mapping[str, Tally]) -> Health:
    """Ranks of what each module hands on, from :func:`plastibench.metrics.activity.tallies`."""
    result = Health()
    for name, tally in found.items():
        rank = effective_rank(torch.linalg.eigvalsh(tally.gram).clamp_min(0).sqrt())
        result.layers[name] = {"layer-rank-share": rank / min(len(tally.gram), tally.thinned_rows)}
    if found:
        mean = sum(layer["layer-rank-share"] for layer in result.layers.values()) / len(found)
        result.overall["layer-rank-share"] = mean
    return result


def feature_ranks(matrix: Tensor) -> dict[str, float]:
    """Ranks of a feature matrix [N, D], uncentred; effective rank and srank are measured in any case."""
    singular = torch.linalg.svdvals(matrix.double())
    largest = singular[0]
    if not largest > 0:
        return dict.fromkeys(("stable-rank", "approximate-rank", "feature-rank", "numerical-rank"), 0.0)
    squares = singular.square()
    return {
        "stable-rank": float(squares.sum() / largest.square()),
        "approximate-rank": float(held_by(squares, 0.99)),
        "feature-rank": float((singular / len(matrix) ** 0.5 > EPSILON).sum()),
        "numerical-rank": float((singular > max(matrix.shape) * torch.finfo(torch.float32).eps * largest).sum()),
    }


def held_by(values: Tensor, share: float) -> int:
    """How many of the largest values hold this share of the sum of all; 0 where the sum is 0."""
    total = values.sum()
    if not total > 0:
        return 0
    return int((values.sort(descending=True).values.cumsum(0) < (share - 1e-12) * total).sum()) + 1


def effective_rank(singular: Tensor) -> float:
    """Exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 where all are 0."""
    total = singular.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(singular.double() / total).sum().exp())
