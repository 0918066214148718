"""The metrics that are measured on request, each with what else comes of the same computation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.metrics import WEIGHTS, curvature, gradients, probes
from plastibench.metrics.activity import activity, attention, tallies
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.ranks import head_ranks, layer_ranks
from plastibench.metrics.weights import weights
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer


def compute_metrics(
    network: Network,
    batch: TensorDictBase,
    names: Collection[str],
    generator: torch.Generator,
    initial: Mapping[str, Tensor] | None = None,
    units: Sequence[TracedLayer] | None = None,
) -> PlasticityReport:
    """Measure the named metrics (:func:`plastibench.metrics.select`), and compute nothing for others.

    Args:
        network: The network; left as it was, its generator included.
        batch: Probe batch.
        names: Of metrics, no groups. What does not exist for this network is left out.
        generator: A CPU generator for metrics that draw.
        initial: Parameters at the start, by name.
        units: What :func:`plastibench.nn.dataflow.trace` found, where that is known already.
    """
    units = trace(network, batch) if units is None else units
    tallied = functools.cache(lambda: tallies(network, batch, units))
    seeds = torch.randint(2**62, (4,), generator=generator).tolist()  # what is measured beside it changes no figure

    def draws(number: int) -> torch.Generator:
        return torch.Generator().manual_seed(seeds[number])

    parts: list[tuple[Collection[str], Callable[[], PlasticityReport]]] = [
        (
            ("dormant-ratio-layer-mean", "fau", "dead-unit-ratio", "zero-activation-ratio", "duplicate-ratio"),
            lambda: activity(tallied(), units),
        ),
        (("attention-entropy", "collapsed-head-ratio"), lambda: attention(network, batch)),
        (("zero-gradient-ratio", "tiny-gradient-ratio"), lambda: gradients.vanishing(network, batch, units)),
        (
            ("gradient-cosine", "gradient-conflict-ratio", "gradient-effective-rank"),
            lambda: gradients.agreement(network, batch),
        ),
        (("ntk-effective-rank", "ntk-numerical-rank"), lambda: gradients.ntk_ranks(network, batch, units)),
        (
            ("stable-rank", "approximate-rank", "feature-rank", "numerical-rank"),
            lambda: head_ranks(network, batch, units),
        ),
        (("layer-rank-fraction",), lambda: layer_ranks(tallied())),
        (WEIGHTS, lambda: weights(network, units, initial)),
        (("hessian-top-eigenvalue",), lambda: curvature.top(network, batch, draws(0))),
        (("hessian-trace", "hessian-trace-error"), lambda: curvature.trace(network, batch, draws(1))),
        (("curvature-rank-proxy",), lambda: curvature.rank_proxy(network, batch)),
        (("sam-sharpness",), lambda: curvature.sharpness(network, batch)),
        (
            ("plasticity-probe-loss", "plasticity-probe-gap", "plasticity-probe-fresh-gap"),
            lambda: probes.random_targets(network, batch, units, draws(2)),
        ),
        (
            ("next-task-probe-loss-gap", "next-task-probe-accuracy-gap"),
            lambda: probes.next_task(network, batch, units, draws(3)),
        ),
    ]
    result = PlasticityReport()
    for members, compute in parts:
        if any(name in names for name in members):
            found = compute()
            result.overall.update({name: value for name, value in found.overall.items() if name in names})
            for layer, values in found.layers.items():
                wanted = {name: value for name, value in values.items() if name in names}
                if wanted:
                    result.layers.setdefault(layer, {}).update(wanted)
    return result
