"""Image datasets by name, as NumPy arrays.

Importing this package imports only NumPy; torchvision, scikit-learn and Pillow are imported when a dataset needs them.
"""

from __future__ import annotations

from pathlib import Path

from plastibench.config.errors import UserError, did_you_mean
from plastibench.envs.datasets.digits import load_digits
from plastibench.envs.datasets.image_dataset import ImageDataset, subset_test_images, subset_training_images
from plastibench.envs.datasets.imagefolder import load_imagefolder
from plastibench.envs.datasets.own import load_own_data
from plastibench.envs.datasets.tiny_imagenet import load_tiny_imagenet
from plastibench.envs.datasets.torchvision_sets import load_torchvision_set

__all__ = ["DATASETS", "ImageDataset", "load_dataset"]

DATASETS: dict[str, str] = {
    "digits": "1,797 greyscale 8x8 digits, 10 classes; part of scikit-learn, no download",
    "mnist": "70,000 greyscale 28x28 digits, 10 classes",
    "fashion-mnist": "70,000 greyscale 28x28 pieces of clothing, 10 classes",
    "cifar10": "60,000 colour 32x32 photographs, 10 classes",
    "cifar100": "60,000 colour 32x32 photographs, 100 classes",
    "tiny-imagenet": "110,000 colour 64x64 photographs, 200 classes",
    "imagefolder": "your own images in <path>/train/<class>/* and <path>/test/<class>/*",
    "own": "your own data: a folder of images, <path>.npz, or what module:function returns",
}


def load_dataset(
    name: str,
    data_dir: str | Path = "data",
    *,
    path: str | Path | None = None,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    download: bool = True,
) -> ImageDataset:
    """Load a dataset.

    Args:
        name: One of ``DATASETS``.
        data_dir: Folder that holds the datasets, downloads and the cache of decoded images.
        path: For "imagefolder": the image folder. For "own": a folder, ``FILE.npz`` or ``module:function``.
        image_size: For image folders: height and width after resizing (default: 32).
        train_size: Number of training images, the first of a fixed permutation (default: all). "digits" has no
            official test set: it trains on 1,200 images by default and tests on the rest.
        test_size: Number of test images, a fixed stratified part of the test set (default: all).
        download: Whether to download missing data.

    Returns:
        The dataset: images uint8 [N, C, H, W] and labels int64 [N].

    Raises:
        UserError: The dataset is unknown, missing or damaged.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset '{name}'{did_you_mean(name, DATASETS)} (available: {', '.join(DATASETS)})")
    if name not in ("imagefolder", "own") and (path is not None or image_size is not None):
        raise UserError(f"path and image_size apply only to imagefolder and own; remove them for {name}")
    data_folder = Path(data_dir).expanduser()
    if name == "digits":
        dataset, train_size = load_digits(train_size), None
    elif name == "imagefolder":
        if path is None:
            raise UserError("imagefolder needs path: a folder with train/<class>/* and test/<class>/*")
        dataset = load_imagefolder(data_folder, Path(path).expanduser(), image_size)
    elif name == "own":
        if path is None:
            raise UserError("own needs path: a folder of images, FILE.npz or module:function")
        dataset = load_own_data(data_folder, str(path), image_size)
    elif name == "tiny-imagenet":
        dataset = load_tiny_imagenet(data_folder, download)
    else:
        dataset = load_torchvision_set(name, data_folder, download)
    if train_size is not None:
        dataset = subset_training_images(dataset, train_size)
    return dataset if test_size is None else subset_test_images(dataset, test_size)
