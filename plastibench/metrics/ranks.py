"""Ranks of representations, each under the name of its definition (names are often confused in published code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.metrics.activity import Tally
from plastibench.metrics.plasticity import PlasticityReport, features, trained_head
from plastibench.metrics.spectra import effective_rank, eigenvalues, count_for_fraction, singular_values
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer

EPSILON = 0.01  # of feature-rank


def head_ranks(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer]) -> PlasticityReport:
    """Ranks of what the head receives.

    Args:
        network: The network; left as it was.
        batch: Probe batch; at least twice as many samples as the head has inputs, or the ranks count samples.
        units: From :func:`plastibench.nn.dataflow.trace`.
    """
    head = trained_head(units)
    return PlasticityReport(overall=feature_ranks(features(network, batch, head)) if head is not None else {})


def layer_ranks(found: Mapping[str, Tally]) -> PlasticityReport:
    """Ranks of what each module hands on, from :func:`plastibench.metrics.activity.tallies`."""
    result = PlasticityReport()
    for name, tally in found.items():
        rank = effective_rank(eigenvalues(tally.gram).sqrt())
        result.layers[name] = {"layer-rank-fraction": rank / min(len(tally.gram), tally.thinned_rows)}
    if found:
        mean = sum(layer["layer-rank-fraction"] for layer in result.layers.values()) / len(found)
        result.overall["layer-rank-fraction"] = mean
    return result


def feature_ranks(matrix: Tensor) -> dict[str, float]:
    """Ranks of a feature matrix [N, D], uncentred; effective rank and srank are measured in any case."""
    singular = singular_values(matrix)
    largest = singular[0]
    if not largest > 0:  # 0 or NaN, and so are all ranks
        return dict.fromkeys(("stable-rank", "approximate-rank", "feature-rank", "numerical-rank"), float(largest))
    squares = singular.square()
    return {
        "stable-rank": float(squares.sum() / largest.square()),
        "approximate-rank": count_for_fraction(squares, 0.99),
        "feature-rank": float((singular / len(matrix) ** 0.5 > EPSILON).sum()),
        "numerical-rank": float((singular > max(matrix.shape) * torch.finfo(torch.float32).eps * largest).sum()),
    }
