"""Curvature of the loss, from products of its Hessian with vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastibench.metrics.gradients import loss_gram, mean_gradient
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.spectra import eigenvalues, count_for_fraction
from plastibench.nn.batches import chunks
from plastibench.nn.network import Network, as_evaluated

SAMPLES = 256
STEPS, SIGNS = 20, 30
RADIUS = 0.05
_PIECE = 64  # samples whose graph of first derivatives is held at once

Product = Callable[[list[Tensor]], list[Tensor]]


def top(network: Network, batch: TensorDictBase, generator: torch.Generator) -> PlasticityReport:
    """The largest eigenvalue of the loss's Hessian."""
    value = top_eigenvalue(_product(network, batch), _trained(network), generator)
    return PlasticityReport(overall={"hessian-top-eigenvalue": value})


def trace(network: Network, batch: TensorDictBase, generator: torch.Generator) -> PlasticityReport:
    """The trace of the loss's Hessian, and how sure it is."""
    value, error = hessian_trace(_product(network, batch), _trained(network), generator)
    return PlasticityReport(overall={"hessian-trace": value, "hessian-trace-error": error})


def rank_proxy(network: Network, batch: TensorDictBase) -> PlasticityReport:
    """A stand-in for the rank of the Hessian: that of the samples' gradients."""
    return PlasticityReport(overall={"curvature-rank-proxy": count_for_fraction(eigenvalues(loss_gram(network, batch)), 0.99)})


def sharpness(network: Network, batch: TensorDictBase) -> PlasticityReport:
    """How much the loss rises close by."""
    return PlasticityReport(overall={"sam-sharpness": sam_sharpness(network, batch[:SAMPLES])})


def _product(network: Network, batch: TensorDictBase) -> Product:
    few = batch[:SAMPLES]
    return lambda vector: hessian_product(network, few, vector)


def _trained(network: Network) -> list[Tensor]:
    return [p for p in network.module.parameters() if p.requires_grad]


def hessian_product(network: Network, batch: TensorDictBase, vector: list[Tensor]) -> list[Tensor]:
    """The Hessian of the mean loss times a vector, in the shapes of the trained parameters.

    Eval mode, float32. Flash attention has no second derivative, so attention is computed plainly.
    """
    trained = [p for p in network.module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in trained]
    with as_evaluated(network.module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for part in chunks(batch, _PIECE):
            loss = network.loss(network.module, part) * (len(part) / len(batch))
            grads = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
            there = [(g, v) for g, v in zip(grads, vector, strict=True) if g is not None and g.requires_grad]
            if not there:
                continue
            slope = torch.stack([(g * v).sum() for g, v in there]).sum()
            seconds = torch.autograd.grad(slope, trained, allow_unused=True)
            for into, second in zip(total, seconds, strict=True):
                if second is not None:
                    into += second
    return total


def top_eigenvalue(product: Product, like: Sequence[Tensor], generator: torch.Generator, steps: int = STEPS) -> float:
    """Largest eigenvalue of a symmetric matrix that is known by its products alone (Lanczos).

    Without re-orthogonalisation, whose vectors would fill the memory: that repeats extreme eigenvalues and shifts none.

    Args:
        product: Matrix times vector.
        like: Shapes and device of a vector.
        generator: Draws the first vector.
        steps: Products at most.
    """
    current = [torch.randn(p.shape, generator=generator).to(p) for p in like]
    length = _dot(current, current) ** 0.5
    current = [c / length for c in current]
    previous = [torch.zeros_like(c) for c in current]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, sum(p.numel() for p in like))):
        following = product(current)
        alpha = _dot(following, current)
        beta = beside[-1] if beside else 0.0
        following = [f - alpha * c - beta * p for f, c, p in zip(following, current, previous, strict=True)]
        diagonal.append(alpha)
        length = _dot(following, following) ** 0.5
        if length <= 1e-6 * max(1e-30, *(abs(a) for a in diagonal)):  # nothing is left outside the space spanned
            beside.append(0.0)
            break
        beside.append(length)
        previous, current = current, [f / length for f in following]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    if not bool(torch.isfinite(matrix).all()):
        return float("nan")
    return float(torch.linalg.eigvalsh(matrix)[-1])


def hessian_trace(
    product: Product, like: Sequence[Tensor], generator: torch.Generator, signs: int = SIGNS
) -> tuple[float, float]:
    """Hutchinson's estimate of the trace with random signs, and its standard error over its size.

    Args:
        product: Matrix times vector.
        like: Shapes and device of a vector.
        generator: Draws the signs.
        signs: How many vectors of them.
    """
    found = []
    for _ in range(signs):
        vector = [(2 * torch.randint(2, p.shape, generator=generator) - 1).to(p) for p in like]
        found.append(_dot(vector, product(vector)))
    values = torch.tensor(found, dtype=torch.float64)
    mean = float(values.mean())
    error = float(values.std() / len(values) ** 0.5)
    return mean, error / max(abs(mean), 1e-300)


def sam_sharpness(network: Network, batch: TensorDictBase, radius: float = RADIUS) -> float:
    """How much the loss rises one step of length ``radius`` up its gradient, measured on a copy."""
    gradient = mean_gradient(network, batch)
    length = sum(float(g.double().square().sum()) for g in gradient.values()) ** 0.5
    before = _mean_loss(network, network.module, batch)
    if length == 0:
        return 0.0
    climbed = copy.deepcopy(network.module)
    with torch.no_grad():
        for name, parameter in climbed.named_parameters():
            if name in gradient:
                parameter.add_(gradient[name], alpha=radius / length)
    return _mean_loss(network, climbed, batch) - before


@torch.no_grad()
def _mean_loss(network: Network, module: torch.nn.Module, batch: TensorDictBase) -> float:
    with as_evaluated(module):
        return sum(float(network.loss(module, part)) * len(part) for part in chunks(batch)) / len(batch)


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    return float(torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]).sum())
