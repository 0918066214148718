"""Gradients of single samples: whether they vanish, agree, and how many directions they span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.spectra import effective_rank, eigenvalues
from plastibench.nn.batch_outputs import output_matrix
from plastibench.nn.batches import chunks
from plastibench.nn.branches import merged_outputs
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer

SAMPLES, NTK_SAMPLES = 64, 32
TINY = 1e-8
_HELD = 2**28  # numbers of gradients in memory at once: 1 GiB of float32


def vanishing(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer]) -> PlasticityReport:
    """Entries of the mean gradient that are exactly or nearly 0, over all parameters and module by module."""
    mean = mean_gradient(network, batch)
    values = torch.cat([g.flatten() for g in mean.values()])
    tiny = TINY * float(values.double().square().mean().sqrt())
    result = PlasticityReport(overall=_shares(values, tiny))
    for unit in units:
        names = [f"{unit.name}.{name}".lstrip(".") for name, _ in unit.module.named_parameters(recurse=False)]
        own = [mean[name].flatten() for name in names if name in mean]
        if own:
            result.layers[unit.name] = _shares(torch.cat(own), tiny)
    return result


def _shares(values: Tensor, tiny: float) -> dict[str, float]:
    zero, small = (values == 0).double().mean(), (values.abs() < tiny).double().mean()
    return {"zero-gradient-ratio": float(zero), "tiny-gradient-ratio": float(small)}


def ntk_ranks(network: Network, batch: TensorDictBase, units: Sequence[TracedLayer]) -> PlasticityReport:
    """Ranks of the empirical neural tangent kernel."""
    outputs = merged_outputs(network.module, [unit.name for unit in units if unit.output])
    spectrum = eigenvalues(ntk(network, batch, outputs))
    above = spectrum > len(spectrum) * torch.finfo(torch.float32).eps * spectrum.max()
    return PlasticityReport(
        overall={"ntk-effective-rank": effective_rank(spectrum.sqrt()), "ntk-numerical-rank": float(above.sum())}
    )


def mean_gradient(network: Network, batch: TensorDictBase) -> dict[str, Tensor]:
    """Gradient of the mean loss over the batch by parameter name, in eval mode; ``.grad`` stays as it is."""
    trained = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    with as_evaluated(network.module), torch.enable_grad():
        for part in chunks(batch):
            loss = network.loss(network.module, part)
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, grad in zip(trained, found, strict=True):
                if grad is not None:
                    total[name] += grad * (len(part) / len(batch))
    return total


def agreement(network: Network, batch: TensorDictBase) -> PlasticityReport:
    """Whether the gradients of samples agree."""
    return PlasticityReport(overall=agreement_of(loss_gram(network, batch)))


def loss_gram(network: Network, batch: TensorDictBase, samples: int = SAMPLES) -> Tensor:
    """Inner products of the loss gradients of the first samples. [k, k], float64."""
    return _gram(network, batch[:samples], lambda module, one: network.loss(module, one))


def ntk(network: Network, batch: TensorDictBase, outputs: Sequence[str], samples: int = NTK_SAMPLES) -> Tensor:
    """Empirical neural tangent kernel of the summed outputs on the first samples. [k, k], float64."""
    return _gram(network, batch[:samples], lambda module, one: output_matrix(network, module, one, outputs).sum())


def agreement_of(gram: Tensor) -> dict[str, float]:
    """How far the gradients of samples agree, from their inner products [k, k]; samples without gradient are left out.

    Fewer than two gradients agree with nothing: then there is no figure.
    """
    length = gram.diagonal().clamp_min(0).sqrt()
    there = length > 0
    gram, length = gram[there][:, there], length[there]
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
    network: Network, batch: TensorDictBase, scalar: Callable[[nn.Module, TensorDictBase], Tensor], held: int = _HELD
) -> Tensor:
    """Gram matrix of per-sample gradients, in blocks: those that do not fit into memory are computed again."""
    trained = [p for p in network.module.parameters() if p.requires_grad]
    size = sum(p.numel() for p in trained)
    count = len(batch)
    block = count if count * size <= held else max(1, held // (2 * size))
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
    """``left @ right.T`` summed in float64 without float64 copies of the whole."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for first in range(0, math.ceil(left.shape[1] / columns) * columns, columns):
        part = slice(first, first + columns)
        total += (left[:, part].double() @ right[:, part].double().T).cpu()
    return total
