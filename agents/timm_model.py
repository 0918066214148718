"""Any timm image model, by name."""

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
    """A timm model without pretrained weights, adapted to the image size of the task stream."""

    model: str = option(
        "resnet18",
        "name of the model, see timm.list_models()",
        required="resnet18 or vit_tiny_patch16_224",
    )

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for images of ``shape`` (C, H, W)."""
        import timm

        if not timm.is_model(self.model):
            raise UserError(f"agent timm: unknown model '{self.model}'{did_you_mean(self.model, timm.list_models())}")
        options = {"in_chans": shape[0], "num_classes": classes}
        try:
            model: nn.Module = timm.create_model(self.model, img_size=shape[1:], **options)
        except TypeError:  # models that accept any image size do not have this option
            model = timm.create_model(self.model, **options)
        patches = getattr(model, "patch_embed", None)
        size = getattr(patches, "patch_size", None) or (1, 1)
        height, width = shape[1] % size[0], shape[2] % size[1]
        if (height or width) and not getattr(patches, "dynamic_img_pad", False):
            raise UserError(
                f"agent timm: {self.model} has patches of {size[0]}x{size[1]} pixels, which do not divide images of "
                f"{shape[1]}x{shape[2]}; choose another --env.image-size or --agent.model"
            )
        return model
