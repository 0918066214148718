"""Vision transformers: timm's implementation in the sizes of the paper (A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from plastibench.agents.classifier_config import ClassifierConfig
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_agent

if TYPE_CHECKING:
    from torch import nn


@register_agent("vit-tiny", "ViT-Tiny of the paper (A.2): patch size 4, width 192, 12 blocks, 3 heads, lr 3e-3")
@register_agent(
    "vit-small",
    "ViT-Small of the paper (A.2): patch size 8, width 384, 12 blocks, 6 heads, lr 1e-4",
    patch_size=8,
    dim=384,
    heads=6,
    lr=1e-4,
)
@register_agent(
    "vit-tiny-hnt", "vit-tiny as implemented by Lee et al. 2024, the authors of the paper's task stream", variant="hnt"
)
@register_agent(
    "vit-small-hnt",
    "vit-small with the implementation details of Lee et al. 2024",
    variant="hnt",
    patch_size=8,
    dim=384,
    heads=6,
    lr=1e-4,
)
@register_agent(
    "vit-nano",
    "ViT with 4 blocks of width 64, for 8x8 images; trains on a CPU in seconds",
    dim=64,
    depth=4,
    heads=2,
    dropout=0.0,
    batch_size=64,
)
@dataclass(frozen=True)
class VisionTransformer(ClassifierConfig):
    """A vision transformer with a class token.

    ``variant="hnt"`` follows the code of Lee et al. 2024 (dojeon-ai/Hare-Tortoise), which differs from timm in these
    points: LayerNorms around the patch projection, no QKV bias, PyTorch's default initialization of Linear layers,
    position embedding and class token drawn from N(0, 1), and LayerNorm eps 1e-5.
    """

    patch_size: int = option(4, "side length of a patch in pixels", low=1, high=4_096)
    dim: int = option(192, "width of the residual stream", low=1, high=65_536)
    depth: int = option(12, "number of blocks", low=1, high=1_000)
    heads: int = option(3, "attention heads", low=1, high=1_024)
    mlp_ratio: float = option(4.0, "hidden width of an MLP block divided by dim", low=0.01)
    dropout: float = option(0.1, "dropout rate of embedding, attention, projections and MLPs", low=0, high=0.99)
    variant: Literal["timm", "hnt"] = option(
        "timm", "architecture details and initialization: timm's, or those of Lee et al. 2024"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for images of ``shape`` (C, H, W)."""
        from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        channels, height, width = shape
        if height % self.patch_size or width % self.patch_size:
            raise UserError(f"agent: patch-size {self.patch_size} does not divide images of {height}x{width} pixels")
        options = {
            "img_size": (height, width),
            "patch_size": self.patch_size,
            "in_chans": channels,
            "num_classes": classes,
            "embed_dim": self.dim,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "proj_drop_rate": self.dropout,
            "attn_drop_rate": self.dropout,
            "pos_drop_rate": self.dropout,
        }
        if self.variant == "timm":
            return TimmVisionTransformer(**options)
        from torch import nn

        from plastibench.agents.patch_embed import NormalisedPatchEmbed

        model = TimmVisionTransformer(
            **options, qkv_bias=False, embed_layer=NormalisedPatchEmbed, norm_layer=nn.LayerNorm, weight_init="skip"
        )
        nn.init.normal_(model.pos_embed)
        nn.init.normal_(model.cls_token)
        return model
