"""ResNet-18 for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plastibench.agents.classifier_config import ClassifierConfig
from plastibench.config.options import option
from plastibench.config.registry import register_agent

if TYPE_CHECKING:
    from torch import nn


@register_agent("resnet18", "ResNet-18 with a 3x3 stem for small images")
@dataclass(frozen=True)
class ResNet18(ClassifierConfig):
    """timm's ResNet-18 with the usual stem for 32x32 images: one 3x3 convolution and no pooling."""

    lr: float = option(1e-3, "peak learning rate", low=0)

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for images of ``shape`` (C, H, W)."""
        import timm
        from torch import nn

        model = timm.create_model("resnet18", in_chans=shape[0], num_classes=classes)
        model.conv1 = nn.Conv2d(shape[0], 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return model
