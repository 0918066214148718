"""Random images in the sizes of the paper's datasets; the content of images does not affect speed.

``--env.dataset own --env.path plastibench.sweeps.benchmark.random_images:cifar100`` names a function of this module.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

_TRAIN, _TEST = 10_240, 256


def cifar100() -> tuple[Split, Split]:
    """Colour images of 32x32 pixels."""
    return _split(_TRAIN, 3, 32), _split(_TEST, 3, 32)


def tiny_imagenet() -> tuple[Split, Split]:
    """Colour images of 64x64 pixels."""
    return _split(_TRAIN, 3, 64), _split(_TEST, 3, 64)


def digits() -> tuple[Split, Split]:
    """Greyscale images of 8x8 pixels."""
    return _split(_TRAIN, 1, 8), _split(_TEST, 1, 8)


def few() -> tuple[Split, Split]:
    """A few greyscale images of 8x8 pixels, for rehearsals."""
    return _split(64, 1, 8), _split(32, 1, 8)


def _split(count: int, channels: int, size: int) -> Split:
    images = np.random.default_rng(count).integers(0, 256, (count, channels, size, size), np.uint8)
    return images, np.arange(count) % 10
