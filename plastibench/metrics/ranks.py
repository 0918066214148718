"""Ranks of representations. Each is named after its definition, because published code often confuses them."""

from __future__ import annotations

import torch
from torch import Tensor

from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.spectra import count_for_fraction, effective_rank, singular_values

EPSILON = 0.01  # threshold of feature-rank


def head_ranks(inputs: MetricInputs) -> PlasticityReport:
    """Measure ranks of the input of the head.

    The batch should have at least twice as many samples as the head has inputs: the number of samples bounds the rank.
    """
    matrix = inputs.features
    return PlasticityReport() if matrix is None else PlasticityReport(overall=feature_ranks(matrix))


def layer_ranks(inputs: MetricInputs) -> PlasticityReport:
    """Measure the rank of the activations of each layer."""
    result, layers = PlasticityReport(), inputs.activation_sums
    for name, sums in layers.items():
        rank = effective_rank(sums.singular_values())
        result.layers[name] = {"layer-rank-fraction": rank / min(len(sums.sum), sums.thinned_rows)}
    if layers:
        mean = sum(layer["layer-rank-fraction"] for layer in result.layers.values()) / len(layers)
        result.overall["layer-rank-fraction"] = mean
    return result


def feature_ranks(matrix: Tensor) -> dict[str, float]:
    """Compute ranks of an uncentred feature matrix [N, D], other than effective rank and srank."""
    singular = singular_values(matrix)
    largest = singular[0]
    if not largest > 0:  # all ranks are 0 or NaN
        return dict.fromkeys(("stable-rank", "approximate-rank", "feature-rank", "numerical-rank"), float(largest))
    squares = singular.square()
    return {
        "stable-rank": float(squares.sum() / largest.square()),
        "approximate-rank": count_for_fraction(squares, 0.99),
        "feature-rank": float((singular / len(matrix) ** 0.5 > EPSILON).sum()),
        "numerical-rank": float((singular > max(matrix.shape) * torch.finfo(torch.float32).eps * largest).sum()),
    }
