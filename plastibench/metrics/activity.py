"""Active, dead and duplicate units, and collapsed attention."""

from __future__ import annotations

import torch
from torch import Tensor

from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import DORMANT, PlasticityReport
from plastibench.nn.dormancy import below_threshold, normalized_scores

DUPLICATE = 0.95  # |correlation| above which two units count as duplicates
_BLOCK = 256  # units that are compared with all later ones at once: few enough for the processor's cache
COLLAPSED = 0.1  # fraction of log T below which the entropy of a head counts as collapsed


def unit_activity(inputs: MetricInputs) -> PlasticityReport:
    """Measure which units are active, dead, dormant or duplicates."""
    result = PlasticityReport()
    dormant: list[float] = []
    active, zero, dead, copies = [], [], [], []  # one tensor [H] per layer
    for unit in inputs.units:
        if unit.name not in inputs.activation_sums:
            continue
        sums = inputs.activation_sums[unit.name]
        layer = result.layers.setdefault(unit.name, {})
        dormant.append(float(below_threshold(normalized_scores(sums.absolute), DORMANT).double().mean()))
        copies.append(duplicates(sums.gram, sums.sum, sums.thinned_rows).double())
        layer["duplicate-ratio"] = float(copies[-1].mean())
        if unit.activated:
            active.append(sums.positive / sums.rows)
            zero.append(sums.zero / sums.rows)
            dead.append((sums.zero == sums.rows).double())
            layer["fau"] = float(active[-1].mean())
            layer["zero-activation-ratio"] = float(zero[-1].mean())
            layer["dead-unit-ratio"] = float(dead[-1].mean())
    if dormant:
        result.overall["dormant-ratio-layer-mean"] = sum(dormant) / len(dormant)
        result.overall["duplicate-ratio"] = float(torch.cat(copies).mean())
    for name, values in (("fau", active), ("dead-unit-ratio", dead), ("zero-activation-ratio", zero)):
        if values:
            result.overall[name] = float(torch.cat(values).mean())
    return result


def attention(inputs: MetricInputs) -> PlasticityReport:
    """Measure the entropy of attention, and the fraction of heads in which it has collapsed."""
    result, heads = PlasticityReport(), inputs.attention
    for name, entropies in heads.items():
        collapsed = float((entropies < COLLAPSED).double().mean())
        result.layers[name] = {"attention-entropy": float(entropies.mean()), "collapsed-head-ratio": collapsed}
    if heads:
        every = torch.cat(list(heads.values()))
        result.overall["attention-entropy"] = sum(float(e.mean()) for e in heads.values()) / len(heads)
        result.overall["collapsed-head-ratio"] = float((every < COLLAPSED).double().mean())
    return result


def duplicates(gram: Tensor, total: Tensor, rows: int, threshold: float = DUPLICATE) -> Tensor:
    """Find units that a later unit duplicates. [H], boolean.

    Args:
        gram: Sum over rows of h hᵀ. [H, H]
        total: Sum over rows of h. [H]
        rows: Number of rows.
        threshold: Smallest absolute correlation of duplicates. Constant units correlate with no other unit.
    """
    variance = gram.diagonal() / rows - total * total / rows**2
    varies = variance > 1e-12 * (gram.diagonal() / rows).clamp_min(1e-300)
    deviation = variance.clamp_min(0).sqrt()
    found = []
    for first in range(0, len(total), _BLOCK):
        own, later = slice(first, first + _BLOCK), slice(first, None)
        covariance = gram[own, later] / rows - torch.outer(total[own], total[later]) / rows**2
        alike = covariance.abs() > threshold * torch.outer(deviation[own], deviation[later])
        found.append((alike & varies[own, None] & varies[later]).triu(1).any(1))
    return torch.cat(found)
