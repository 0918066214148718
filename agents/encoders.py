"""From observations to features: the networks that off-policy agents have before their heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from plastibench.agents.vit import VisionTransformer
from plastibench.config.errors import UserError
from plastibench.config.options import option


class Scale(nn.Module):
    """Observations as floating-point numbers of order one: bytes are divided by 255, truth values become 0 and 1."""

    def __init__(self, bytes_: bool) -> None:
        super().__init__()
        self.factor = 1 / 255 if bytes_ else 1.0

    def forward(self, observation: Tensor) -> Tensor:
        """[B, ...] of any type to float32."""
        return observation.float() * self.factor if self.factor != 1 else observation.float()


@dataclass(frozen=True)
class Encoder:
    """Options of the network before the heads."""

    encoder: Literal["mlp", "cnn", "impala", "vit"] = option("mlp", "network before the heads")
    hidden: tuple[int, ...] = option((256, 256), "units of the hidden layers after the encoder, as 256,256", low=1)
    layer_norm: bool = option(False, "LayerNorm after each hidden layer, before its activation")
    patch_size: int = option(0, "vit: side of a patch; 0: 2 for 10x10 cells, 12 for 84x84 pixels", low=0)
    dim: int = option(64, "vit: width of the residual stream", low=1)
    depth: int = option(2, "vit: number of blocks", low=1)
    heads: int = option(2, "vit: attention heads", low=1)

    def encode(self, shape: tuple[int, ...], bytes_: bool) -> tuple[nn.Module, int]:
        """The encoder for observations of a shape, and how many features it has.

        Args:
            shape: (features,) or (channels, height, width).
            bytes_: Whether observations are bytes from 0 to 255.

        Raises:
            UserError: The encoder is for images and the observations are none, or are too small.
        """
        if self.encoder == "mlp":
            return nn.Sequential(Scale(bytes_), nn.Flatten()), int(torch.Size(shape).numel())
        if len(shape) != 3:
            raise UserError(f"agent: encoder {self.encoder} is for images; here observations have shape {shape}")
        if self.encoder == "vit":
            layers = [self._vit(shape)]
        else:
            layers = _impala(shape) if self.encoder == "impala" else _convolutions(shape)
        body = nn.Sequential(Scale(bytes_), *layers)
        with torch.no_grad():
            features = body(torch.zeros(1, *shape)).shape[1]
        return body, int(features)

    def hidden_layers(self, inputs: int) -> tuple[list[nn.Module], int]:
        """The hidden layers, and how many units the last one has."""
        modules: list[nn.Module] = []
        for width in self.hidden:
            modules += [nn.Linear(inputs, width), *([nn.LayerNorm(width)] * self.layer_norm), nn.ReLU(True)]
            inputs = width
        return modules, inputs

    def _vit(self, shape: tuple[int, int, int]) -> nn.Module:
        if self.dim % self.heads:
            raise UserError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        patch = self.patch_size or (2 if shape[1] <= 20 else 12)
        options = VisionTransformer(patch_size=patch, dim=self.dim, depth=self.depth, heads=self.heads, dropout=0.0)
        return options.module(shape, 0)


def _convolutions(shape: tuple[int, int, int]) -> list[nn.Module]:
    """The network of MinAtar (Young & Tian 2019) for small images, of Nature (Mnih et al. 2015) for large ones."""
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
    """The residual network of IMPALA (Espeholt et al. 2018), 16, 32 and 32 channels."""
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
        """[B, C, H, W] to the same."""
        return x + self.conv2(torch.relu(self.conv1(torch.relu(x))))
