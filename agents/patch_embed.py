"""The patch embedding of Lee et al. 2024: a Linear layer between two LayerNorms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class NormalisedPatchEmbed(nn.Module):
    """Embed flattened patches with LayerNorm, Linear and LayerNorm: [B, C, H, W] -> [B, N, D]."""

    def __init__(
        self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **_unused: Any
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_patches = (img_size[0] // patch_size) * (img_size[1] // patch_size)
        width = in_chans * patch_size**2
        self.norm_in = nn.LayerNorm(width)
        self.proj = nn.Linear(width, embed_dim)
        self.norm_out = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch of images."""
        p = self.patch_size
        patches = images.unfold(2, p, p).unfold(3, p, p)  # [B, C, H/p, W/p, p, p]
        tokens = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # [B, N, p·p·C]
        return self.norm_out(self.proj(self.norm_in(tokens)))
