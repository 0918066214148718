"""DASH: direction-aware shrinking (Shin et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.loss_gradients import gradients, weights_of
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import forget_all


@register_intervention("dash")
@dataclass
class Dash(Intervention):
    """Shrink the weights of each unit by how little they point where the new data would move them.

    ``W_r ← W_r · clip(cos(G_r, W_r), floor, 1)`` for every row r of a Linear and every kernel (output, input) of a
    convolution; a bias is one vector. G is the exponential average ``G ← (1-α)·G + α·(-∇L)`` over pieces of the batch
    in their order, from G = 0, with the weights held still. Norm layers and embeddings stay as they are.

    Followed: the repository baekrok/DASH-Direction-Aware-SHrinking, whose pass covers all data of the stage in train
    mode; here it is the representative batch in eval mode. A kernel of 1x1 has no direction but its sign, as there.
    """

    kind = "reset"
    extra_compute = "a forward and backward pass each time"

    alpha: float = option(0.3, "weight of each piece's gradient in the average", low=0, high=1)
    floor: float = option(0.3, "smallest factor (λ of the paper)", low=0, high=1)
    piece: int = option(128, "samples per gradient", low=1)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Average, then shrink; the optimizer forgets what was shrunk."""
        parameters = {
            f"{name}.{key}": parameter
            for name in weights_of(network.module)
            for key, parameter in network.module.get_submodule(name).named_parameters(recurse=False)
            if parameter.requires_grad
        }
        averages = [torch.zeros_like(parameter) for parameter in parameters.values()]
        for _, found in gradients(network, as_batch(batch), list(parameters.values()), self.piece):
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
        forget_all(network.optimizer, list(parameters.values()))
        return report


def _factors(parameter: nn.Parameter, average: Tensor, floor: float) -> Tensor:
    """What to multiply a parameter by: a scalar [1] for a bias, [out, 1] for a matrix, [out, in, 1, 1] for kernels."""
    axes = {1: (0,), 2: (1,)}.get(parameter.ndim, tuple(range(2, parameter.ndim)))
    one, other = parameter.detach().double(), average.double()
    lengths = (one.square().sum(axes, keepdim=True) * other.square().sum(axes, keepdim=True)).sqrt()
    cosine = (one * other).sum(axes, keepdim=True) / lengths.clamp_min(1e-300)
    return cosine.clamp(floor, 1.0).to(parameter.dtype)
