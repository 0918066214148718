"""An intervention for plastibench: ``plastibench run … --intervention shrink``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase

from plastibench import Intervention, Network, Report, option


@dataclass
class Shrink(Intervention):
    """Multiply every weight matrix by a factor; keep biases and norms."""

    factor: float = option(0.9, "fraction of each weight that remains", low=0, high=1)

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Shrink in place, so that the optimizer and other owners of the parameters keep the same tensors."""
        report = Report()
        for parameter in network.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(self.factor)
                report.parameters += parameter.numel()
        return report
