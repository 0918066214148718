"""Augmentation and normalization of uint8 image batches, on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Normalize:
    """Convert uint8 [..., C, H, W] to float32, standardized by the dataset's channel means and standard deviations.

    Attributes:
        key: The means and standard deviations; equal for instances that do the same.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        std = tuple(s or 1.0 for s in std)  # a constant channel becomes 0
        self.key = (mean, std)
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device)[:, None, None]
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize a batch."""
        return torch.addcmul(self._shift, images.float(), self._scale)


def crop_and_flip(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Apply a random crop after zero padding and a random horizontal flip to each sample (Lee et al. 2024).

    Args:
        images: Images of any dtype. [B, C, H, W]
        pad: Padding on each side, in pixels.
        generator: A generator on the images' device.
    """
    count, _, height, width = images.shape
    device = images.device
    offset = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator, device=device)
    flip = torch.rand(count, 1, generator=generator, device=device) < 0.5
    rows = torch.arange(height, device=device) + offset[0]  # [B, H]
    columns = torch.arange(width, device=device)
    columns = torch.where(flip, columns.flip(0), columns) + offset[1]  # [B, W]
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)  # [B, H+2p, W+2p, C]
    sample = torch.arange(count, device=device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``pad`` pixels, repeating its edge (DrQ, Kostrikov et al. 2021). [B, C, H, W]."""
    count, _, height, width = images.shape
    device = images.device
    offset = torch.randint(-pad, pad + 1, (2, count, 1), generator=generator, device=device)
    rows = (torch.arange(height, device=device) + offset[0]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width, device=device) + offset[1]).clamp(0, width - 1)  # [B, W]
    sample = torch.arange(count, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
