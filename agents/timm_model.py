"""Any image model of timm, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plastibench.agents.classifier_config import ClassifierConfig
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import option
from plastibench.config.registry import register_agent

if TYPE_CHECKING:
    from torch import nn


@register_agent("timm", "Any timm model by name (--agent.model)")
@dataclass(frozen=True)
class TimmModel(ClassifierConfig):
    """A timm model, untrained, for the images of the task stream."""

    model: str = option("resnet18", "a name from timm.list_models()")

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The untrained network for images of ``shape`` (C, H, W)."""
        import timm

        if not timm.is_model(self.model):
            raise UserError(f"agent timm: no model '{self.model}'{did_you_mean(self.model, timm.list_models())}")
        options = {"in_chans": shape[0], "num_classes": classes}
        try:
            model: nn.Module = timm.create_model(self.model, img_size=shape[1:], **options)
        except TypeError:  # models that take any image size have no such option
            model = timm.create_model(self.model, **options)
        patches = getattr(model, "patch_embed", None)
        size = getattr(patches, "patch_size", None) or (1, 1)
        height, width = shape[1] % size[0], shape[2] % size[1]
        if (height or width) and not getattr(patches, "dynamic_img_pad", False):
            raise UserError(
                f"agent timm: {self.model} cuts images into patches of {size[0]}x{size[1]}, which do not cover one of "
                f"{shape[1]}x{shape[2]}; take another --env.image-size or model"
            )
        return model
