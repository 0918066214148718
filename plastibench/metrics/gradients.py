"""Gradients of single samples: how many vanish, how similar they are, and the rank they span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.spectra import effective_rank, eigenvalues
from plastibench.nn.batch_outputs import output_matrix
from plastibench.nn.branches import merged_outputs
from plastibench.nn.network import Network, as_evaluated

SAMPLES, NTK_SAMPLES = 64, 32
TINY = 1e-8  # relative to the root mean square of all entries
_MEMORY = 2**28  # gradient entries in memory at once: 1 GiB of float32


def zero_gradients(inputs: MetricInputs) -> PlasticityReport:
    """Measure the fraction of entries of the mean gradient that are exactly or nearly 0, overall and per layer."""
    mean = inputs.mean_gradient
    values = torch.cat([g.flatten() for g in mean.values()])
    tiny = TINY * float(values.double().square().mean().sqrt())
    result = PlasticityReport(overall=_fractions(values, tiny))
    for unit in inputs.units:
        names = [f"{unit.name}.{name}".lstrip(".") for name, _ in unit.module.named_parameters(recurse=False)]
        own = [mean[name].flatten() for name in names if name in mean]
        if own:
            result.layers[unit.name] = _fractions(torch.cat(own), tiny)
    return result


def _fractions(values: Tensor, tiny: float) -> dict[str, float]:
    zero, small = len(values) - int(values.count_nonzero()), int((values.abs() < tiny).count_nonzero())
    return {"zero-gradient-ratio": zero / len(values), "tiny-gradient-ratio": small / len(values)}


def gradient_similarity(inputs: MetricInputs) -> PlasticityReport:
    """Measure how similar the gradients of samples are."""
    return PlasticityReport(overall=similarity(loss_gram(inputs.network, inputs.batch)))


def ntk_ranks(inputs: MetricInputs) -> PlasticityReport:
    """Measure ranks of the empirical neural tangent kernel."""
    outputs = merged_outputs(inputs.network.module, [unit.name for unit in inputs.units if unit.output])
    spectrum = eigenvalues(ntk(inputs.network, inputs.batch, outputs))
    above = spectrum > len(spectrum) * torch.finfo(torch.float32).eps * spectrum.max()
    return PlasticityReport(
        overall={"ntk-effective-rank": effective_rank(spectrum.sqrt()), "ntk-numerical-rank": float(above.sum())}
    )


def loss_gram(network: Network, batch: TensorDictBase, samples: int = SAMPLES) -> Tensor:
    """Compute the inner products of the loss gradients of the first samples. [k, k], float64."""
    return _gram(network, batch[:samples], lambda module, one: network.loss(module, one))


def ntk(network: Network, batch: TensorDictBase, outputs: Sequence[str], samples: int = NTK_SAMPLES) -> Tensor:
    """Compute the empirical neural tangent kernel of the summed outputs on the first samples. [k, k], float64."""
    return _gram(network, batch[:samples], lambda module, one: output_matrix(network, module, one, outputs).sum())


def similarity(gram: Tensor) -> dict[str, float]:
    """Compute how similar gradients are from their inner products [k, k].

    Samples with a zero gradient are left out. The result is empty for fewer than two other samples.
    """
    length = gram.diagonal().clamp_min(0).sqrt()
    nonzero = length > 0
    gram, length = gram[nonzero][:, nonzero], length[nonzero]
    count = len(length)
    if count < 2:
        return {}
    cosine = gram / torch.outer(length, length)
    pairs = cosine[torch.triu_indices(count, count, 1).unbind()]
    return {
        "gradient-cosine": float(pairs.mean()),
        "gradient-conflict-ratio": float((pairs < 0).double().mean()),
        "gradient-effective-rank": effective_rank(eigenvalues(cosine).sqrt()),
    }


def _gram(
    network: Network,
    batch: TensorDictBase,
    scalar: Callable[[nn.Module, TensorDictBase], Tensor],
    memory: int = _MEMORY,
) -> Tensor:
    """Compute the Gram matrix of per-sample gradients in blocks; gradients that do not fit in memory are recomputed."""
    trained = [p for p in network.module.parameters() if p.requires_grad]
    size = sum(p.numel() for p in trained)
    count = len(batch)
    block = count if count * size <= memory else max(1, memory // (2 * size))
    gram = torch.zeros(count, count, dtype=torch.float64)

    def rows(first: int) -> Tensor:
        found = []
        for index in range(first, min(first + block, count)):
            value = scalar(network.module, batch[index : index + 1])
            grads = torch.autograd.grad(value, trained, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, grads, strict=True)]
            found.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(found)

    with as_evaluated(network.module), torch.enable_grad():
        for first in range(0, count, block):
            left = rows(first)
            for second in range(first, count, block):
                right = left if second == first else rows(second)
                products = _products(left, right)
                gram[first : first + len(left), second : second + len(right)] = products
                gram[second : second + len(right), first : first + len(left)] = products.T
    return gram


def _products(left: Tensor, right: Tensor, columns: int = 2**20) -> Tensor:
    """Compute ``left @ right.T`` in float64, converting only some columns at a time."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for first in range(0, math.ceil(left.shape[1] / columns) * columns, columns):
        part = slice(first, first + columns)
        total += (left[:, part].double() @ right[:, part].double().T).cpu()
    return total
