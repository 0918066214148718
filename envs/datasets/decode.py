"""Decode image files to arrays in a thread pool (Pillow releases the GIL while decoding)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from plastibench.config.errors import UserError
from plastibench.envs.datasets.image_dataset import ImageDataset, Images, Labels, build_dataset
from plastibench.envs.datasets.read_image import fit as fit_image
from plastibench.envs.datasets.read_image import read_image, without_bombs
from plastibench.envs.datasets.source import FileSource


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
        fit: Rotate images according to their EXIF orientation and resize them, as needed for user files. If False,
            images of other sizes raise an error.

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
        where = source.root / names[index]
        image = read_image(source.content(names[index]), where, grey=channels == 1, upright=fit)
        if fit:
            image = fit_image(image, size, size)
        elif image.size != (size, size):
            width, height = image.size
            raise UserError(f"{where}: {width}x{height} pixels, expected {size}x{size}; replace or remove the file")
        images[index] = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)

    with without_bombs(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_into, range(len(names))):
            pass  # iterating raises the first error and cancels the remaining files
    return images
