"""Parseval regularization: keep the rows of weight matrices orthogonal and of equal norm (Chung et al. 2024)."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.parameters import trainable_layers


@register_intervention("parseval")
@dataclass
class Parseval(Intervention):
    """Add λ Σ ‖W·Wᵀ − s·I‖² over the hidden Linear and Conv2d layers to the loss (Chung et al. 2024).

    A filter of a convolution counts as a row. The rows of a matrix with more rows than columns cannot be orthogonal, so
    its columns are regularized instead: ‖Wᵀ·W − s·I‖². (The authors' networks have no such matrix.) By default, s is
    the initial mean squared singular value of each layer, ‖W‖² / min(out, in), so that any initialization keeps its
    scale.

    Differences from the authors' code (wechu/parseval_reg): it starts from orthogonal matrices with gain √2 and uses
    s=2, divides λ by (width/64)², and adds learnable scales. Output layers are excluded: those that the network names,
    or else the last registered layer.
    """

    kind = "regularizer"
    extra_compute = "one Gram matrix per layer and update"

    strength: float = option(1e-3, "regularization strength λ", low=0)
    scale: float | None = option(
        None, "target s of the squared singular values (default: initial mean of each layer)", low=0
    )

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Measure the initial mean squared singular values."""
        self._scales(_matrices(network))

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """Return the regularization term. Matrices of equal shape are multiplied together."""
        matrices = _matrices(network)
        scales = self._scales(matrices)
        shapes: dict[torch.Size, list[str]] = defaultdict(list)
        for name, matrix in matrices.items():
            shapes[matrix.shape].append(name)
        total: Tensor | None = None
        for names in shapes.values():
            stack = torch.stack([matrices[name] for name in names])  # [layers, short, long]
            aim = torch.stack([scales[name] for name in names])[:, None, None]
            identity = torch.eye(stack.shape[1], dtype=stack.dtype, device=stack.device)
            with torch.autocast(stack.device.type, enabled=False):  # rounding to half precision would hide the distance
                distance = (stack @ stack.mT - aim * identity).square().sum()
            total = distance if total is None else total + distance
        return None if total is None else self.strength * total

    def state_dict(self) -> dict[str, Any]:
        """Return the initial mean squared singular values by layer."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial mean squared singular values."""
        self._initial = dict(state["initial"])

    def _scales(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the target of each layer. New layers, e.g. after a rebuild, are measured first."""
        for name, matrix in matrices.items():
            if name not in self._initial:
                scale = matrix.detach().square().sum() / len(matrix)
                self._initial[name] = scale if self.scale is None else torch.full_like(scale, self.scale)
            elif self._initial[name].device != matrix.device:
                self._initial[name] = self._initial[name].to(matrix.device)
        return self._initial


def _matrices(network: Network) -> dict[str, Tensor]:
    """Return the weights of the hidden layers as matrices [short side, long side]."""
    flat = {name: layer.weight.flatten(1) for name, layer in trainable_layers(network, output=False).items()}
    return {name: weight if weight.shape[0] <= weight.shape[1] else weight.mT for name, weight in flat.items()}
