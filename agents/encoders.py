"""Encoders of RL agents: networks that map observations to features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from plastibench.agents.vit import VisionTransformer
from plastibench.config.errors import UserError
from plastibench.config.options import option


class Scale(nn.Module):
    """Convert observations to float32; bytes are scaled to [0, 1]."""

    def __init__(self, uint8: bool) -> None:
        super().__init__()
        self.factor = 1 / 255 if uint8 else 1.0

    def forward(self, observation: Tensor) -> Tensor:
        """Convert [B, ...] of any dtype to float32."""
        return observation.float() * self.factor if self.factor != 1 else observation.float()


@dataclass(frozen=True)
class Encoder:
    """Options of the encoder and the hidden layers that follow it."""

    encoder: Literal["mlp", "cnn", "impala", "vit"] = option("mlp", "network that maps observations to features")
    hidden: tuple[int, ...] = option(
        (256, 256), "widths of the hidden layers after the encoder, e.g. 256,256", low=1, high=65_536
    )
    layer_norm: bool = option(False, "add LayerNorm before the activation of each hidden layer")
    patch_size: int = option(
        0, "vit: side length of a patch; 0: 2 for small images (MinAtar), 12 for larger ones (Atari)", low=0, high=4_096
    )
    dim: int = option(64, "vit: width of the residual stream", low=1, high=65_536)
    depth: int = option(2, "vit: number of blocks", low=1, high=1_000)
    heads: int = option(2, "vit: attention heads", low=1, high=1_024)

    def encode(self, shape: tuple[int, ...], uint8: bool) -> tuple[nn.Module, int]:
        """Build the encoder, and return it with the number of its output features.

        Args:
            shape: Shape of an observation, (features,) or (channels, height, width).
            uint8: Whether observations are bytes from 0 to 255.

        Raises:
            UserError: The encoder needs images, but observations are not images; or the ViT options do not fit.
        """
        if self.encoder == "mlp":
            return nn.Sequential(Scale(uint8), nn.Flatten()), int(torch.Size(shape).numel())
        if len(shape) != 3:
            raise UserError(
                f"agent: encoder {self.encoder} needs images, but observations have shape {shape}; use encoder mlp"
            )
        if self.encoder == "vit":
            layers = [self._vit(shape)]
        else:
            layers = _impala(shape) if self.encoder == "impala" else _convolutions(shape)
        body = nn.Sequential(Scale(uint8), *layers)
        with torch.no_grad():
            features = body(torch.zeros(1, *shape)).shape[1]
        return body, int(features)

    def hidden_layers(self, inputs: int) -> tuple[list[nn.Module], int]:
        """Build the hidden layers, and return them with the width of the last one."""
        modules: list[nn.Module] = []
        for width in self.hidden:
            modules += [nn.Linear(inputs, width), *([nn.LayerNorm(width)] * self.layer_norm), nn.ReLU(True)]
            inputs = width
        return modules, inputs

    def _vit(self, shape: tuple[int, int, int]) -> nn.Module:
        if self.dim % self.heads:
            raise UserError(f"agent: dim {self.dim} is not a multiple of heads {self.heads}")
        patch = self.patch_size or (2 if shape[1] <= 20 else 12)
        options = VisionTransformer(patch_size=patch, dim=self.dim, depth=self.depth, heads=self.heads, dropout=0.0)
        return options.module(shape, 0)


def _convolutions(shape: tuple[int, int, int]) -> list[nn.Module]:
    """The CNN of MinAtar (Young & Tian 2019) for small images, or of Nature DQN (Mnih et al. 2015) for larger ones."""
    channels, height, width = shape
    if min(height, width) < 36:
        return [nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten()]
    return [
        *(nn.Conv2d(channels, 32, 8, 4), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1), nn.ReLU()),
        nn.Flatten(),
    ]


def _impala(shape: tuple[int, int, int]) -> list[nn.Module]:
    """The residual network of IMPALA (Espeholt et al. 2018), with 16, 32 and 32 channels."""
    modules: list[nn.Module] = []
    inputs = shape[0]
    for channels in (16, 32, 32):
        modules += [nn.Conv2d(inputs, channels, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
        modules += [_Residual(channels), _Residual(channels)]
        inputs = channels
    return [*modules, nn.ReLU(), nn.Flatten()]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of two convolutions to the input. [B, C, H, W]."""
        return x + self.conv2(torch.relu(self.conv1(torch.relu(x))))
