"""Which units are active, which repeat each other, and where attention has collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.metrics.plasticity import DORMANT, PlasticityReport
from plastibench.nn.activations import for_each_activation
from plastibench.nn.attention import attention_entropies
from plastibench.nn.dormancy import below_threshold, normalized_scores
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count

DUPLICATE = 0.95  # |correlation| beyond which two units say the same
COLLAPSED = 0.1  # share of log T below which a head attends to next to nothing but one token
ROWS = 4096  # of each layer, for figures whose cost grows with the square of its width


class Tally:
    """Running sums over what one module hands on."""

    def __init__(self, module: nn.Module, device: torch.device, share: float) -> None:
        size = unit_count(module)
        self.share = share
        self.rows = self.thinned_rows = 0
        zeros = torch.zeros(4, size, dtype=torch.float64, device=device)
        self.absolute, self.positive, self.zero, self.sum = zeros.unbind()
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, h: Tensor) -> None:
        """Take in h [rows, H]."""
        self.rows += len(h)
        self.absolute += h.abs().sum(0, dtype=torch.float64)
        self.positive += (h > 0).sum(0)
        self.zero += (h == 0).sum(0)
        thinned = evenly(h, max(2, math.ceil(ROWS * self.share))).double()
        self.thinned_rows += len(thinned)
        self.sum += thinned.sum(0)
        self.gram += thinned.T @ thinned


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of the rows, evenly taken. [n, H]."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]


def tallies(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer]) -> dict[str, Tally]:
    """One pass over the batch; what each module but the outputs and frozen ones hands on, summed up."""
    found: dict[str, Tally] = {}

    def visit(unit: TracedLayer, h: Tensor) -> None:
        if unit.name not in found:
            found[unit.name] = Tally(unit.module, network.device, min(1.0, 256 / len(batch)))
        found[unit.name].add(h)

    for_each_activation(network, batch, [unit for unit in units if unit.trained and not unit.output], visit)
    return found


def activity(found: Mapping[str, Tally], units: Sequence[TracedLayer]) -> PlasticityReport:
    """Shares of units that are active, dead, dormant, or copies of others.

    Args:
        found: From :func:`tallies`.
        units: From :func:`plastibench.nn.dataflow.trace`.
    """
    result = PlasticityReport()
    dormant: list[float] = []
    active, zero, dead, copies = [], [], [], []  # one tensor [H] per layer
    for unit in units:
        if unit.name not in found:
            continue
        tally = found[unit.name]
        layer = result.layers.setdefault(unit.name, {})
        dormant.append(float(below_threshold(normalized_scores(tally.absolute), DORMANT).double().mean()))
        copies.append(duplicates(tally.gram, tally.sum, tally.thinned_rows).double())
        layer["duplicate-ratio"] = float(copies[-1].mean())
        if unit.activated:
            active.append(tally.positive / tally.rows)
            zero.append(tally.zero / tally.rows)
            dead.append((tally.zero == tally.rows).double())
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


def attention(network: Network, batch: TensorDictBase) -> PlasticityReport:
    """How widely attention is spread, and in how many heads it is not."""
    result, heads = PlasticityReport(), attention_entropies(network, batch)
    for name, entropies in heads.items():
        collapsed = float((entropies < COLLAPSED).double().mean())
        result.layers[name] = {"attention-entropy": float(entropies.mean()), "collapsed-head-ratio": collapsed}
    if heads:
        every = torch.cat(list(heads.values()))
        result.overall["attention-entropy"] = sum(float(e.mean()) for e in heads.values()) / len(heads)
        result.overall["collapsed-head-ratio"] = float((every < COLLAPSED).double().mean())
    return result


def duplicates(gram: Tensor, total: Tensor, rows: int, threshold: float = DUPLICATE) -> Tensor:
    """Units that a later unit repeats. [H], boolean.

    Args:
        gram: Sum over rows of h hᵀ. [H, H]
        total: Sum over rows of h. [H]
        rows: How many.
        threshold: On the absolute correlation. Units that never vary correlate with none.
    """
    covariance = gram / rows - torch.outer(total, total) / rows**2
    variance = covariance.diagonal()
    varies = variance > 1e-12 * (gram.diagonal() / rows).clamp_min(1e-300)
    deviation = variance.clamp_min(0).sqrt()
    alike = covariance.abs() > threshold * torch.outer(deviation, deviation)
    alike &= torch.outer(varies, varies)
    return alike.triu(1).any(1)
