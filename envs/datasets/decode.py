"""Image files to arrays, on a small pool of threads (Pillow decodes outside Python's global lock)."""

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
    """Decode a data set whose files are already sorted into classes.

    Args:
        name: The data set's name.
        source: Where the files are read from.
        classes: K class names.
        train: For each class the names of its training files, at least one.
        test: For each class the names of its test files.
        channels: 1 for greyscale or 3 for RGB.
        size: Height and width of the result.
        fit: Bring images of other sizes to that size; without it they are a mistake.

    Returns:
        The data set in class-major order.
    """
    if not classes:
        raise UserError(f"{source.where}: no training images for {name}; fetch it again")
    if untested := [label for label, files in zip(classes, test, strict=True) if not files]:
        raise UserError(f"{source.where}: no test images of class '{untested[0]}' for {name}; fetch it again")

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
            place, width, height = source.where / names[index], *image.size
            raise UserError(f"{place}: {width}x{height} pixels where {size}x{size} are due; replace or remove the file")
        images[index] = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_into, range(len(names))):
            pass  # taking each result raises the first file's error and cancels the rest
    return images


def _open_image(source: FileSource, name: str, mode: str) -> Image.Image:
    """Read one file whole, as 8-bit greyscale ("L") or "RGB"; transparency is dropped."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source.read(name))) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to white instead of scaling them
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
            if "transparency" in image.info:  # only by way of RGBA does Pillow drop a palette's without a warning
                return image.convert("RGBA").convert(mode)
            return image.convert(mode)
    except Exception as error:  # a broken file makes Pillow's plug-ins raise almost anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{source.where / name}: no readable image ({reason}); replace or remove the file") from error


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` (bilinear) and cut the middle out of the longer one."""
    from PIL import Image

    shorter = min(image.size)
    width, height = (max(size, round(side * size / shorter)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
