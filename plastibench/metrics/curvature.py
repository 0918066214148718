"""Curvature of the loss, computed from Hessian-vector products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastibench.metrics.gradients import loss_gram
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.spectra import count_for_fraction, eigenvalues
from plastibench.nn.batches import chunks
from plastibench.nn.mean_gradient import mean_gradient
from plastibench.nn.network import Network, as_evaluated

SAMPLES = 256
STEPS, SIGNS = 20, 30
RADIUS = 0.05
_PIECE = 64  # samples per double backward pass; bounds the memory

Product = Callable[[list[Tensor]], list[Tensor]]


def top_eigenvalue(inputs: MetricInputs) -> PlasticityReport:
    """Estimate the largest eigenvalue of the Hessian of the loss."""
    value = lanczos(_product(inputs), _trained(inputs.network), inputs.generator(0))
    return PlasticityReport(overall={"hessian-top-eigenvalue": value})


def trace(inputs: MetricInputs) -> PlasticityReport:
    """Estimate the trace of the Hessian of the loss, with its standard error."""
    value, error = hutchinson(_product(inputs), _trained(inputs.network), inputs.generator(1))
    return PlasticityReport(overall={"hessian-trace": value, "hessian-trace-error": error})


def rank_proxy(inputs: MetricInputs) -> PlasticityReport:
    """Approximate the rank of the Hessian by the rank of the per-sample gradients."""
    spectrum = eigenvalues(loss_gram(inputs.network, inputs.batch))
    return PlasticityReport(overall={"curvature-rank-proxy": count_for_fraction(spectrum, 0.99)})


def sharpness(inputs: MetricInputs) -> PlasticityReport:
    """Measure the increase of the loss one step up its gradient."""
    return PlasticityReport(overall={"sam-sharpness": sam_sharpness(inputs.network, inputs.batch[:SAMPLES])})


def _product(inputs: MetricInputs) -> Product:
    batch = inputs.batch[:SAMPLES]
    return lambda vector: hessian_product(inputs.network, batch, vector)


def _trained(network: Network) -> list[Tensor]:
    return [p for p in network.module.parameters() if p.requires_grad]


def hessian_product(network: Network, batch: TensorDictBase, vector: list[Tensor]) -> list[Tensor]:
    """Multiply the Hessian of the mean loss by a vector, given as tensors shaped like the trained parameters.

    Runs in eval mode and float32. Flash attention has no second derivative, so attention uses the math backend.
    """
    trained = [p for p in network.module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in trained]
    with as_evaluated(network.module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for part in chunks(batch, _PIECE):
            loss = network.loss(network.module, part) * (len(part) / len(batch))
            grads = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
            reached = [(g, v) for g, v in zip(grads, vector, strict=True) if g is not None and g.requires_grad]
            if not reached:
                continue
            slope = torch.stack([(g * v).sum() for g, v in reached]).sum()
            seconds = torch.autograd.grad(slope, trained, allow_unused=True)
            for into, second in zip(total, seconds, strict=True):
                if second is not None:
                    into += second
    return total


def lanczos(product: Product, like: Sequence[Tensor], generator: torch.Generator, steps: int = STEPS) -> float:
    """Estimate the largest eigenvalue of a symmetric matrix from matrix-vector products.

    Lanczos iteration without re-orthogonalization, which would keep all vectors in memory. Without it, extreme
    eigenvalues can be repeated but are not shifted.

    Args:
        product: Multiplies the matrix by a vector.
        like: Tensors with the shapes and device of a vector.
        generator: Draws the first vector.
        steps: Maximum number of products.
    """
    current = [torch.randn(p.shape, generator=generator).to(p) for p in like]
    length = _dot(current, current) ** 0.5
    current = [c / length for c in current]
    previous = [torch.zeros_like(c) for c in current]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(min(steps, sum(p.numel() for p in like))):
        following = product(current)
        alpha = _dot(following, current)
        beta = off_diagonal[-1] if off_diagonal else 0.0
        following = [f - alpha * c - beta * p for f, c, p in zip(following, current, previous, strict=True)]
        diagonal.append(alpha)
        length = _dot(following, following) ** 0.5
        if length <= 1e-6 * max(1e-30, *(abs(a) for a in diagonal)):  # the Krylov space is exhausted
            off_diagonal.append(0.0)
            break
        off_diagonal.append(length)
        previous, current = current, [f / length for f in following]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(off_diagonal[: len(diagonal) - 1], dtype=torch.float64)
    matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    if not bool(torch.isfinite(matrix).all()):
        return float("nan")
    return float(torch.linalg.eigvalsh(matrix)[-1])


def hutchinson(
    product: Product, like: Sequence[Tensor], generator: torch.Generator, signs: int = SIGNS
) -> tuple[float, float]:
    """Estimate the trace of a matrix with random sign vectors (Hutchinson).

    Args:
        product: Multiplies the matrix by a vector.
        like: Tensors with the shapes and device of a vector.
        generator: Draws the signs.
        signs: Number of sign vectors.

    Returns:
        The estimate, and its standard error divided by its absolute value.
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
    """Measure how much the loss increases after a step of length ``radius`` along its gradient, on a copy."""
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
