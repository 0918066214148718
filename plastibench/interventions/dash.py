"""DASH: direction-aware shrinking (Shin et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.loss_gradients import chunk_gradients
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import clear_state
from plastibench.nn.parameters import layer_weights


@register_intervention("dash")
@dataclass
class Dash(Intervention):
    """Shrink weights that do not align with the negative gradient on the new data (DASH, Shin et al. 2024).

    ``W_r ← W_r · clip(cos(G_r, W_r), floor, 1)`` for every row r of a Linear and every kernel (output, input) of a
    convolution. A bias is treated as one vector. G is a moving average of negative gradients,
    ``G ← (1-α)·G + α·(-∇L)``, over consecutive chunks of the batch, starting at 0 with fixed weights. Norms and
    embeddings are kept. The optimizer state of shrunk weights is reset.

    Follows baekrok/DASH-Direction-Aware-SHrinking, except that the source passes over all data of the stage in train
    mode, and this class over the representative batch in eval mode. As in the source, the only direction of a 1×1
    kernel is its sign.
    """

    kind = "reset"
    extra_compute = "a forward and backward pass per intervention"

    alpha: float = option(0.3, "weight of each chunk's gradient in the moving average", low=0, high=1)
    floor: float = option(0.3, "smallest shrinking factor (λ in the paper)", low=0, high=1)
    piece: int = option(128, "samples per chunk", low=1)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Average the gradients over the batch, then shrink the weights."""
        parameters = {
            f"{name}.{key}": parameter
            for name in layer_weights(network.module)
            for key, parameter in network.module.get_submodule(name).named_parameters(recurse=False)
            if parameter.requires_grad
        }
        averages = [torch.zeros_like(parameter) for parameter in parameters.values()]
        for _, found in chunk_gradients(network, as_batch(batch), list(parameters.values()), self.piece):
            for average, gradient in zip(averages, found, strict=True):
                average.mul_(1 - self.alpha)
                if gradient is not None:
                    average.sub_(gradient, alpha=self.alpha)
        report = Report()
        for (name, parameter), average in zip(parameters.items(), averages, strict=True):
            factors = _factors(parameter, average, self.floor)
            parameter.data.mul_(factors)
            report.parameters += parameter.numel()
            if name.endswith(".weight"):
                report.note(name.removesuffix(".weight"), factor=float(factors.mean()))
        clear_state(network.optimizer, list(parameters.values()))
        return report


def _factors(parameter: nn.Parameter, average: Tensor, floor: float) -> Tensor:
    """Return the shrinking factors: [1] for a bias, [out, 1] for a matrix, [out, in, 1, 1] for kernels."""
    axes = {1: (0,), 2: (1,)}.get(parameter.ndim, tuple(range(2, parameter.ndim)))
    one, other = parameter.detach().double(), average.double()
    lengths = (one.square().sum(axes, keepdim=True) * other.square().sum(axes, keepdim=True)).sqrt()
    cosine = (one * other).sum(axes, keepdim=True) / lengths.clamp_min(1e-300)
    return cosine.clamp(floor, 1.0).to(parameter.dtype)
