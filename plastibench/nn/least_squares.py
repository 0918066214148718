"""Closed-form least squares that refit a module to given outputs from new inputs (paper 3.4), in float64.

Rows are accumulated in Gram matrices, so memory does not grow with the batch. ``torch.linalg.lstsq`` is not an option:
the inputs of qkv, fc1 and head are LayerNorm outputs, which are exactly rank-deficient together with the bias column,
and the only CUDA driver (gels) assumes full rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.units import CONVOLUTIONS, is_linear, unit_count, unit_parameters, unit_rows, unit_weight

SolverName = Literal["delta-ridge", "ridge", "pinv"]
_CHUNK = 16384  # rows converted to float64 at a time
_RANK_TOLERANCE = 1e-10  # for Gram eigenvalues, which is 1e-5 for singular values


@dataclass(frozen=True)
class Solver:
    """How to solve the linear systems.

    Attributes:
        name: ``pinv`` is the minimum-norm least-squares solution, as printed in the paper. ``ridge`` penalizes the new
            weights. ``delta-ridge`` penalizes the change from the current weights, so directions that the batch does
            not determine stay as they are. A penalty of several times the mean diagonal corrects only the few
            directions in which the inputs are largest (above all their
            mean). This restores most of the output and avoids the large weights
            of an exact fit.
        ridge: Penalty relative to the mean diagonal of the Gram matrix; unused by ``pinv``.
        max_growth: Raise the penalty tenfold until ||W'|| <= max_growth·||W||; 0 disables this.
    """

    name: SolverName = "delta-ridge"
    ridge: float = 10.0
    max_growth: float = 0.0


@dataclass
class Fit:
    """A refitted module.

    Attributes:
        weight: New weight with one row per unit, as :func:`plastibench.nn.units.unit_weight` returns it; float64.
        bias: New bias; None if the module has none.
        residual: ||new outputs - targets|| / ||targets|| over all rows and all refitted units.
        norm_ratio: ||new weight|| / ||old weight|| of the refitted units.
    """

    weight: Tensor
    bias: Tensor | None
    residual: float
    norm_ratio: float


class LinearFit:
    """Least squares for a linear layer or convolution: accumulates G = AᵀA and C = AᵀY, where A = [inputs, 1]."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        weight, self._bias = unit_parameters(module)
        self._shape, device = weight.shape, weight.device
        columns = weight[0].numel() + (self._bias is not None)
        self.gram = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.cross = torch.zeros(columns, unit_count(module), dtype=torch.float64, device=device)
        self.target_square = torch.zeros(unit_count(module), dtype=torch.float64, device=device)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Accumulate rows: ``inputs`` as the module receives them, ``targets`` as it should return them."""
        for rows, wanted in _linear_rows(self.module, inputs, targets):
            if self._bias is not None:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)  # [n, p+1]
            self.gram += rows.mT @ rows
            self.cross += rows.mT @ wanted
            self.target_square += wanted.square().sum(0)

    def solve(self, solver: Solver, keep: Tensor | None = None) -> Fit:
        """Solve for the new parameters: S = R + (G + λI)⁻¹(C - G·R).

        R is the current solution for ``delta-ridge`` and 0 otherwise. Without a penalty the inverse is the
        pseudo-inverse, so null directions keep R. Units in the mask ``keep`` [H] keep their parameters.
        """
        current = self._current()  # [p+1, H]
        fitted = slice(None) if keep is None else ~keep
        reference = current if solver.name == "delta-ridge" else torch.zeros_like(current)
        missing = self.cross - self.gram @ reference
        scale = float(self.gram.diagonal().mean())
        penalty = 0.0 if solver.name == "pinv" else solver.ridge * scale
        while True:
            solution = reference + _apply_inverse(self.gram, penalty, missing)
            ratio = self._norm(solution[:, fitted]) / max(self._norm(current[:, fitted]), 1e-30)
            if not solver.max_growth or ratio <= solver.max_growth or penalty >= 1e6 * scale:
                break
            penalty = 10 * max(penalty, 1e-9 * scale)
        square = self.target_square - 2 * (solution * self.cross).sum(0) + (solution * (self.gram @ solution)).sum(0)
        residual = _residual(square[fitted], self.target_square[fitted])
        solution = solution if keep is None else torch.where(keep, current, solution)
        weight = solution[: self._shape[1:].numel()].mT.reshape(self._shape)
        bias = solution[-1] if self._bias is not None else None
        return Fit(weight, bias, residual, ratio)

    def _current(self) -> Tensor:
        weight = unit_weight(self.module).detach().double().flatten(1).mT  # [p, H]
        return weight if self._bias is None else torch.cat([weight, self._bias.double()[None]])

    def _norm(self, solution: Tensor) -> float:
        return float(solution[: self._shape[1:].numel()].norm())


class LayerNormFit:
    """Per-feature regression for a LayerNorm: γ' = Cov(x̂', Y)/Var(x̂'), β' = E[Y] - γ'·E[x̂'] (paper 3.4.2)."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self.module = module
        self.rows = 0
        shape = (5, unit_count(module))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=module.weight.device)  # x, y, xx, xy, yy

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Accumulate rows, as :meth:`LinearFit.add`."""
        for raw, wanted in zip(inputs.flatten(0, -2).split(_CHUNK), targets.flatten(0, -2).split(_CHUNK), strict=True):
            x, y = F.layer_norm(raw.double(), self.module.normalized_shape, eps=self.module.eps), wanted.double()
            self.rows += len(x)
            self.sums += torch.stack([x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0), (y * y).sum(0)])

    def solve(self, solver: Solver, keep: Tensor | None = None) -> Fit:
        """Solve for the new γ and β.

        A feature keeps its γ if its normalized input does not vary, and both if it is in the mask ``keep`` [H].
        """
        x, y, xx, xy, yy = self.sums / self.rows
        variance = xx - x * x
        old = self.module.weight.detach().double()
        if self.module.bias is None:  # a line through the origin
            x, y, variance = torch.zeros_like(x), torch.zeros_like(y), xx
        varies = variance > 1e-12
        weight = torch.where(varies, (xy - x * y) / variance.clamp_min(1e-12), old)
        bias = y - weight * x
        fitted = slice(None) if keep is None else ~keep
        error = weight**2 * variance - 2 * weight * (xy - x * y) + (yy - y * y)
        residual = _residual(error[fitted], yy[fitted])
        ratio = float(weight[fitted].norm() / old[fitted].norm().clamp_min(1e-30))
        if keep is not None:
            weight = torch.where(keep, old, weight)
            bias = bias if self.module.bias is None else torch.where(keep, self.module.bias.detach().double(), bias)
        return Fit(weight, bias if self.module.bias is not None else None, residual, ratio)


def has_closed_form(module: nn.Module) -> bool:
    """Whether the module can be refitted; a convolution with groups or unusual padding cannot."""
    if isinstance(module, CONVOLUTIONS):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.LayerNorm) or is_linear(module)


def fit_for(module: nn.Module) -> LinearFit | LayerNormFit | None:
    """An empty fit for the module; None if it has no closed form."""
    if not has_closed_form(module):
        return None
    return LayerNormFit(module) if isinstance(module, nn.LayerNorm) else LinearFit(module)


def _residual(error: Tensor, target: Tensor) -> float:
    """Square root of summed squared errors over summed squared targets; both [H]."""
    return float((error.sum().clamp_min(0) / target.sum().clamp_min(1e-300)).sqrt())


def _apply_inverse(gram: Tensor, penalty: float, right: Tensor) -> Tensor:
    """(G + λI)⁻¹ right: by Cholesky if λ is above rounding, otherwise as pseudo-inverse by eigendecomposition of G."""
    if penalty > _RANK_TOLERANCE * float(gram.trace()):  # a smaller one does not suppress rounding in null directions
        factor, failed = torch.linalg.cholesky_ex(gram + penalty * torch.eye(len(gram)).to(gram))
        if not failed:
            return torch.cholesky_solve(right, factor)
    try:
        eigenvalues, vectors = torch.linalg.eigh(gram)
    except RuntimeError:  # many eigenvalues are exactly 0: a perturbation far below the tolerance separates them
        perturbation = 1e-13 * gram.diagonal().mean() * torch.arange(len(gram)).to(gram) / len(gram)
        eigenvalues, vectors = torch.linalg.eigh(gram + perturbation.diag())
    kept = eigenvalues > _RANK_TOLERANCE * eigenvalues[-1].clamp_min(1e-300)
    inverse = torch.where(kept, 1 / (eigenvalues + penalty), 0.0)
    return vectors @ (inverse[:, None] * (vectors.mT @ right))


def _linear_rows(module: nn.Module, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of (rows [n, p], targets [n, H]) in float64; the rows of a convolution are its receptive fields."""
    if not isinstance(module, CONVOLUTIONS):
        for rows, wanted in zip(
            inputs.flatten(0, -2).split(_CHUNK), unit_rows(module, targets).split(_CHUNK), strict=True
        ):
            yield rows.double(), wanted.double()
        return
    samples = max(1, _CHUNK // targets.shape[2:].numel())
    for images, wanted in zip(inputs.split(samples), targets.split(samples), strict=True):
        yield _receptive_fields(module, images.double()), unit_rows(module, wanted).double()  # [n, C·k…], [n, H]


def _receptive_fields(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, images: Tensor) -> Tensor:
    """Return the inputs that each output position reads, channel by channel. [B·positions, C·k…]."""
    assert isinstance(module.padding, tuple)
    if isinstance(module, nn.Conv2d):
        fields = F.unfold(images, module.kernel_size, module.dilation, module.padding, module.stride)
        return fields.mT.flatten(0, 1)
    fields = F.pad(images, [p for p in reversed(module.padding) for _ in range(2)])
    for axis, (size, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True), 2):
        fields = fields.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]  # [B, C, positions…, k…]
    count = len(module.kernel_size)
    return fields.movedim(1, count + 1).flatten(count + 1).flatten(0, count)
