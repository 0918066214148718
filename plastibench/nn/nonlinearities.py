"""Nonlinearities that PyTorch lacks: with two features per input, or with a normalization in front."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Paired(nn.Module):
    """Base class of nonlinearities that compute two features per input: H inputs along ``dim`` become 2·H.

    Both halves are computed in one function call, so :mod:`plastibench.nn.unit_tracking` sees 2·H features of H units.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        """Show the dimension in ``print(module)``."""
        return f"dim={self.dim}"


class CReLU(Paired):
    """[relu(z), relu(-z)] (Shang et al. 2016)."""

    def forward(self, z: Tensor) -> Tensor:
        """Map [..., H, ...] to [..., 2·H, ...]."""
        return torch.cat([z, -z], self.dim).relu()


class Fourier(Paired):
    """[sin(z), cos(z)] (Lewandowski et al. 2024)."""

    def forward(self, z: Tensor) -> Tensor:
        """Map [..., H, ...] to [..., 2·H, ...]; cos(z) is computed as sin(z + π/2)."""
        return torch.cat([z, z + math.pi / 2], self.dim).sin()


class Normed(nn.Sequential):
    """A nonlinearity with a normalization that was inserted before it."""
