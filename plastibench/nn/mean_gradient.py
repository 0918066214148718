"""The gradient of the mean loss over a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.batch_pass import Collector, run_pass
from plastibench.nn.network import Network


class GradientCollector(Collector):
    """Collects the gradient of the mean loss by parameter name."""

    def __init__(self, network: Network, samples: int) -> None:
        """Start at zero; ``samples`` is the number of samples of all chunks."""
        self._samples = samples
        trained = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
        self.total = {name: torch.zeros_like(p) for name, p in trained.items()}

    def end(self, loss: Tensor, gradients: Mapping[str, Tensor], size: int) -> None:
        """Add the gradients of a chunk."""
        for name, grad in gradients.items():
            self.total[name] += grad * (size / self._samples)


def mean_gradient(network: Network, batch: TensorDictBase) -> dict[str, Tensor]:
    """Compute the gradient of the mean loss by parameter name, in eval mode; ``.grad`` is unchanged."""
    collector = GradientCollector(network, len(batch))
    run_pass(network, batch, [collector], backward=True)
    return collector.total
