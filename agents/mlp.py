"""A multilayer perceptron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plastibench.agents.classifier_config import ClassifierConfig
from plastibench.config.options import option
from plastibench.config.registry import register_agent

if TYPE_CHECKING:
    from torch import nn


@register_agent("mlp", "ReLU network with two hidden layers of 128 units")
@dataclass(frozen=True)
class MLP(ClassifierConfig):
    """Linear and ReLU layers on the flattened image, trained without weight decay at a constant learning rate."""

    stackable: ClassVar[bool] = True
    weight_decay: float = option(0.0, "decoupled weight decay", low=0)
    batch_size: int = option(64, "samples per update", low=1, high=1_000_000)
    warmup: float = option(0.0, "fraction of a task's updates used for linear learning-rate warm-up", low=0, high=1)
    schedule: Literal["cosine", "constant"] = option(
        "constant", "learning-rate schedule after the warm-up, within each task"
    )
    width: int = option(128, "units per hidden layer", low=1, high=65_536)
    hidden: int = option(2, "number of hidden layers", low=1, high=1_000)

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for images of ``shape`` (C, H, W)."""
        from torch import nn

        layers: list[nn.Module] = [nn.Flatten()]
        inputs = shape[0] * shape[1] * shape[2]
        for _ in range(self.hidden):
            layers += [nn.Linear(inputs, self.width), nn.ReLU()]
            inputs = self.width
        return nn.Sequential(*layers, nn.Linear(inputs, classes))
