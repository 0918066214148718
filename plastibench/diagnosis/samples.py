"""Images to diagnose a network with: a dataset by name, a folder, arrays in a file, or noise."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plastibench.config.errors import UserError, did_you_mean
from plastibench.envs.datasets import DATASETS, load_dataset
from plastibench.envs.datasets.imagefolder import training_files
from plastibench.envs.datasets.own import channels_first
from plastibench.envs.datasets.read_image import fit, read_image, without_bombs
from plastibench.utils.wording import plural

_DATASETS = [name for name in DATASETS if name not in ("imagefolder", "own")]
_IMAGES, _LABELS = ("images", "image", "x", "data", "x_train"), ("labels", "label", "y", "targets", "y_train")


@dataclass
class Samples:
    """Images as a network receives them.

    Attributes:
        name: Where they come from.
        images: float32 [N, C, H, W]; bytes are standardized to mean 0 and standard deviation 1.
        labels: int64 [N], or None.
        classes: Number of classes, or None.
    """

    name: str
    images: Tensor
    labels: Tensor | None
    classes: int | None


def read_samples(text: str, count: int, shape: tuple[int, int, int], data_dir: Path) -> Samples:
    """Read up to ``count`` images. If shapes differ, resize the images and repeat or average their channels.

    Args:
        text: Name of a dataset, ``noise``, a folder of images (with or without a subfolder per class), a .npz file, or
            ``module:function`` as for the dataset ``own``.
        count: Number of images; they are spread evenly over the data.
        shape: Shape (C, H, W) that the network takes.
        data_dir: Folder of datasets.

    Raises:
        UserError: The data does not exist or cannot be read.
    """
    path = Path(text).expanduser()
    if text == "noise":
        images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
        return Samples("noise", images, None, None)
    own = ":" in text and not path.exists()
    if own or text in _DATASETS:
        found = load_dataset("own", data_dir, path=text) if own else load_dataset(text, data_dir)
        chosen = _spread(len(found.train_images), count)
        labels = torch.from_numpy(found.train_labels[chosen])
        samples = Samples(text, _standardized(found.train_images[chosen]), labels, len(found.classes))
    elif path.is_dir():
        samples = _folder(path, count, shape)
    elif path.suffix == ".npz":
        samples = _arrays(path, count)
    elif path.exists():
        raise UserError(f"--data {text}: expected a folder of images or a .npz file")
    else:
        known = [*_DATASETS, "noise"]
        hint = did_you_mean(text, known)
        raise UserError(f"--data {text}: no such dataset, folder or .npz file{hint} (datasets: {', '.join(known)})")
    _check_varied(samples)
    samples.images = _fitted(samples.images, shape)
    return samples


def _spread(total: int, count: int) -> np.ndarray:
    """Up to ``count`` indices below ``total``, evenly spaced: data may be sorted by class."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def _standardized(images: np.ndarray) -> Tensor:
    """Standardize bytes [N, C, H, W] by the mean and standard deviation of each channel of the batch."""
    native = images.astype(images.dtype.newbyteorder("="), copy=False)
    values = torch.from_numpy(np.ascontiguousarray(native)).float() / 255
    mean, std = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True, correction=0)
    return (values - mean) / std.clamp_min(1e-3)


def _fitted(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return images.contiguous()


def _folder(path: Path, count: int, shape: tuple[int, int, int]) -> Samples:
    """Read images of a folder in the same way as ``run``, alternating between classes."""
    try:
        source, by_class = training_files(path)
    except UserError as error:
        raise UserError(f"--data {error}") from error
    classes = [label for label in sorted(by_class) if label]
    groups = [by_class[label] for label in sorted(by_class)]
    rounds = itertools.zip_longest(*([(file, label) for file in files] for label, files in enumerate(groups)))
    chosen = [pair for each in rounds for pair in each if pair is not None][:count]
    images = np.empty((len(chosen), 3, *shape[1:]), np.uint8)
    with without_bombs():
        for index, (file, _) in enumerate(chosen):
            image = fit(read_image(source.content(file), path / file), *shape[1:])
            images[index] = np.asarray(image).transpose(2, 0, 1)
    labels = torch.tensor([label for _, label in chosen]) if classes else None
    return Samples(str(path), _standardized(images), labels, len(classes) or None)


def _check_varied(found: Samples) -> None:
    """Raise UserError if images are constant or identical, because every unit would then look constant."""
    first = found.images[:1]
    if bool((found.images == first.flatten()[0]).all()):
        raise UserError(
            f"--data {found.name}: all images have the same constant value, so they reveal nothing about a network"
        )
    if len(found.images) > 1 and bool((found.images == first).all()):
        raise UserError(
            f"--data {found.name}: the {plural(len(found.images), 'image')} do not differ; pass different images"
        )


def _arrays(path: Path, count: int) -> Samples:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a part of the archive is not an array")
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"cannot load arrays safely from {path} ({type(error).__name__}: {reason})") from error
    by_name = {name.lower(): array for name, array in arrays.items()}
    images = next((by_name[name] for name in _IMAGES if name in by_name), None)
    if images is None:
        images = next((array for array in arrays.values() if array.ndim in (3, 4)), None)
    if images is None or images.ndim not in (3, 4) or not images.size or images.dtype.kind not in "uifb":
        shapes = "[N, C, H, W], [N, H, W, C] or [N, H, W]"
        raise UserError(f"{path} has no images of shape {shapes}; it has {_contents(arrays)}")
    labels = next((by_name[name] for name in _LABELS if name in by_name), None)
    if labels is not None and (labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "ui"):
        raise UserError(f"{path}: labels must be integers of shape [{len(images)}]; the file has {_contents(arrays)}")
    images = channels_first(images, str(path))
    chosen = _spread(len(images), count)
    images = images[chosen]
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)  # also from another byte order, or from more than 64 bits
        if not np.isfinite(images).all():
            raise UserError(f"{path}: the images contain values that are not finite")
        values = torch.from_numpy(np.ascontiguousarray(images)).float()  # assumed to be standardized already
    else:
        values = _standardized(images)
    if labels is None:
        return Samples(str(path), values, None, None)
    if labels.min() < 0:
        raise UserError(f"{path}: labels must not be negative")
    kept = torch.from_numpy(labels[chosen].astype(np.int64))
    return Samples(str(path), values, kept, int(labels.max()) + 1)


def _contents(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "nothing"
