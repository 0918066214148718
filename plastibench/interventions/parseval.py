"""Parseval regularisation (Chung et al. 2024): keep the rows of weight matrices orthogonal and equally long."""

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
from plastibench.nn.parameters import layers


@register_intervention("parseval")
@dataclass
class Parseval(Intervention):
    """λ Σ ‖W Wᵀ − s·I‖_F² in the loss, over the hidden Linear and Conv2d layers.

    A filter of a convolution counts as a row. A matrix with more rows than columns cannot have orthogonal rows (the
    authors' networks have none), so there its columns are made orthogonal: ‖Wᵀ W − s·I‖². By default s is each layer's
    mean squared singular value at the start, ‖W‖_F² / min(out, in), so that any initialisation keeps its scale; the
    authors start from orthogonal matrices of gain √2 and take s=2 (wechu/parseval_reg). They also divide λ by
    (width/64)², which is left to the choice of λ here, and add learnable scales, which are left out. Spared are the
    output layers: those that the network names, or else the module with units that was registered last.
    """

    kind = "regularizer"
    extra_compute = "a Gram matrix per layer and update"

    strength: float = option(1e-3, "λ", low=0)
    scale: float | None = option(
        None, "s, the squared singular value aimed at; by default each layer's mean at the start", low=0
    )

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Measure the initial spectra."""
        self._scales(_matrices(network))

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """The distance from orthogonality; matrices of one shape are multiplied together."""
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
            with torch.autocast(stack.device.type, enabled=False):  # half a precision's rounding hides the distance
                distance = (stack @ stack.mT - aim * identity).square().sum()
            total = distance if total is None else total + distance
        return None if total is None else self.strength * total

    def state_dict(self) -> dict[str, Any]:
        """The initial mean squared singular values, by layer."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._initial = dict(state["initial"])

    def _scales(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        """Aim of each layer; one that is seen for the first time, as after a rebuild, is measured now."""
        for name, matrix in matrices.items():
            if name not in self._initial:
                scale = matrix.detach().square().sum() / len(matrix)
                self._initial[name] = scale if self.scale is None else torch.full_like(scale, self.scale)
            elif self._initial[name].device != matrix.device:
                self._initial[name] = self._initial[name].to(matrix.device)
        return self._initial


def _matrices(network: Network) -> dict[str, Tensor]:
    """Weights of the hidden layers with the shorter side first. [short, long]."""
    flat = {name: layer.weight.flatten(1) for name, layer in layers(network, output=False).items()}
    return {name: weight if weight.shape[0] <= weight.shape[1] else weight.mT for name, weight in flat.items()}
