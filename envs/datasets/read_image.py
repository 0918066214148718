"""Read one image of any format that Pillow supports; ``run`` and ``diagnose`` use this reader."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

READER = 2  # increase it when the same file would be decoded to other pixels, so that caches are rebuilt
_MAX_RATIO = 100  # ratio of the sides; above it, resizing the shorter side would create a huge image
# Files that are often stored beside images. Any other unreadable file is an error, so that no image is lost silently.
_NOT_IMAGES = frozenset(
    [
        *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".xml", ".yaml", ".yml", ".toml", ".ini", ".db"),
        *(".log", ".html", ".htm", ".pdf", ".py", ".ipynb", ".zip", ".npy", ".npz", ".pt", ".parquet", ".mat"),
    ]
)


def may_be_image(name: str) -> bool:
    """Whether a file should be read as an image; false for the names of hidden, text and macOS metadata files."""
    parts = Path(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and Path(name).suffix.lower() not in _NOT_IMAGES


@contextlib.contextmanager
def without_bombs() -> Iterator[None]:
    """Raise errors for images above ``PIL.Image.MAX_IMAGE_PIXELS``; Pillow only warns up to twice as many pixels."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(content: bytes, where: object, *, grey: bool = False, upright: bool = True) -> Image.Image:
    """Decode an image, or the first frame of an animation, to 8 bits per channel without transparency.

    Integers of 16 bits and floats in [0, 1] are scaled to 8 bits; Pillow would clip them to white or black.

    Args:
        content: The bytes of the file.
        where: The file, for messages.
        grey: Convert to greyscale instead of RGB.
        upright: Rotate the image according to its EXIF orientation.

    Raises:
        UserError: It is damaged, too large or not an image, or its value range is unknown.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    mode = "L" if grey else "RGB"
    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > _MAX_RATIO * min(image.size):
                raise ValueError(f"{image.width}x{image.height} pixels: one side is {_MAX_RATIO} times the other")
            turned = ImageOps.exif_transpose(image) if upright else image
            if turned.mode.startswith(("I", "F")):
                turned = Image.fromarray(_eight_bits(np.asarray(turned)))
            if "transparency" in turned.info:  # without RGBA, Pillow warns about palettes
                turned = turned.convert("RGBA")
            return turned.convert(mode)
    except UnidentifiedImageError as error:  # its message contains the address of an object
        raise UserError(f"{where}: not a readable image (unknown format); replace or remove the file") from error
    except Exception as error:  # Pillow's plugins raise many kinds of errors for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{where}: not a readable image ({reason}); replace or remove the file") from error


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize an image so that it just covers ``height`` x ``width`` (bilinear), and crop its centre."""
    from PIL import Image

    now_wide, now_high = image.size
    if now_wide * height >= now_high * width:
        size = max(width, round(now_wide * height / now_high)), height
    else:
        size = width, max(height, round(now_high * width / now_wide))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale integers from 0 to 65535, or floats from 0 to 1, to bytes."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(f"floating-point values from {low:g} to {high:g}; expected 0 to 1")
        return np.rint(values * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"integers from {low} to {high}; expected 16 bits, 0 to 65535")
    if values.dtype.itemsize > 2 and 0 < high < 256:  # a black picture if scaled from 16 bits, grey levels from 8
        raise ValueError(f"{values.dtype.itemsize * 8}-bit integers up to {high}; store them with 8 or 16 bits")
    return np.rint(values * (255 / 65535)).astype(np.uint8)
