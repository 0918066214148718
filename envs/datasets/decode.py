"""Decode image files to arrays in a thread pool (Pillow releases the GIL while decoding)."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config.errors import UserError
from plastibench.envs.datasets.image_dataset import ImageDataset, Images, Labels, build_dataset
from plastibench.envs.datasets.source import FileSource

_MAX_RATIO = 100  # of the sides; resizing the shorter side would make a huge image

if TYPE_CHECKING:
    from PIL import Image


def dataset_from_files(
    name: str,
    source: FileSource,
    classes: Sequence[str],
    train: Sequence[Sequence[str]],
    test: Sequence[Sequence[str]],
    *,
    channels: int,
    size: int,
    fit: bool = False,
) -> ImageDataset:
    """Decode a dataset from lists of files per class.

    Args:
        name: Name of the dataset.
        source: Source of the files.
        classes: K class names.
        train: Names of the training files of each class, at least one.
        test: Names of the test files of each class.
        channels: 1 for greyscale or 3 for RGB.
        size: Height and width of the result.
        fit: Resize images of other sizes; if False, they raise an error.

    Returns:
        The dataset, ordered by class.

    Raises:
        UserError: A file cannot be read or has the wrong size, or a class has no test images.
    """
    if not classes:
        raise UserError(f"{source.root}: no training images for {name}; download it again")
    if untested := [label for label, files in zip(classes, test, strict=True) if not files]:
        raise UserError(f"{source.root}: no test images of class '{untested[0]}' for {name}; download it again")

    def decode(split: Sequence[Sequence[str]]) -> tuple[Images, Labels]:
        labels = np.repeat(np.arange(len(classes)), [len(files) for files in split]).astype(np.int64)
        return _decode_all(source, [file for files in split for file in files], channels, size, fit), labels

    return build_dataset(name, decode(train), decode(test), tuple(classes))


def _decode_all(source: FileSource, names: Sequence[str], channels: int, size: int, fit: bool) -> Images:
    """Decode the named files to uint8 [N, channels, size, size]."""
    images = np.empty((len(names), channels, size, size), np.uint8)

    def decode_into(index: int) -> None:
        image = _open_image(source, names[index], "L" if channels == 1 else "RGB")
        if fit:
            image = _fit(image, size)
        elif image.size != (size, size):
            file, (width, height) = source.root / names[index], image.size
            raise UserError(f"{file}: {width}x{height} pixels, expected {size}x{size}; replace or remove the file")
        images[index] = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_into, range(len(names))):
            pass  # iterating raises the first error and cancels the remaining files
    return images


def _open_image(source: FileSource, name: str, mode: str) -> Image.Image:
    """Read one file as 8-bit greyscale ("L") or "RGB" and drop transparency."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source.read(name))) as image:
            if max(image.size) > _MAX_RATIO * min(image.size):
                raise ValueError(f"{image.width}x{image.height} pixels: one side is {_MAX_RATIO} times the other")
            if image.mode.startswith(("I", "F")):  # Pillow clips these modes to white instead of scaling them
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
            if "transparency" in image.info:  # without RGBA, Pillow warns about palettes
                return image.convert("RGBA").convert(mode)
            return image.convert(mode)
    except Exception as error:  # Pillow's plugins raise many kinds of errors for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{source.root / name}: not a readable image ({reason}); replace or remove the file") from error


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` (bilinear) and centre-crop the longer side."""
    from PIL import Image

    shorter = min(image.size)
    width, height = (max(size, round(side * size / shorter)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
