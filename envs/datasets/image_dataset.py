"""A loaded image dataset: arrays, class names and statistics of the training images."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from plastibench.config.errors import UserError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # eq=False: == of arrays is not a single bool
class ImageDataset:
    """A labelled image dataset in memory.

    Attributes:
        name: Name in ``DATASETS``.
        train_images: uint8 [N, C, H, W].
        train_labels: int64 [N], 0 to K - 1.
        test_images: uint8 [M, C, H, W].
        test_labels: int64 [M], 0 to K - 1.
        classes: K class names, indexed by label.
        mean: Mean per channel of the training images, scaled to [0, 1]. [C]
        std: Population standard deviation per channel of the same. [C]
    """

    name: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @functools.cached_property
    def digest(self) -> str:
        """Hash of all images and labels; results on different data have different digests."""
        found = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()[:12]


def build_dataset(
    name: str, train: tuple[Images, Labels], test: tuple[Images, Labels], classes: tuple[str, ...]
) -> ImageDataset:
    """Create a dataset and compute the statistics of the training images.

    Raises:
        UserError: A split is empty, or a label is not one of the classes.
    """
    for split, (images, labels) in (("training", train), ("test", test)):
        if not len(images):
            raise UserError(f"{name} has no {split} images; download it again")
        if labels.min() < 0 or labels.max() >= len(classes):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise UserError(
                f"{name}: a {split} image has label {wrong}, but labels are 0 to {len(classes) - 1}; download it again"
            )
    mean, std = channel_statistics(train[0])
    return ImageDataset(name, *train, *test, classes, mean, std)


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and population standard deviation per channel of uint8 [N, C, H, W], scaled to [0, 1].

    The sums are exact integers computed from histograms. Only the final division and square root round, so the result
    does not depend on the order of the images or on the machine.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        histogram = np.zeros(256, np.int64)
        for start in range(0, len(images), 1024):  # bincount converts its input to int64: bound the memory
            histogram += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
        counts = histogram.tolist()
        pixels = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        means.append(total / (255 * pixels))
        deviations.append(math.sqrt((pixels * squares - total * total) / (255 * pixels) ** 2))
    return tuple(means), tuple(deviations)


def fixed_permutation(length: int) -> npt.NDArray[np.int64]:
    """Return the permutation of 0 to length - 1 that defines splits and subsets, independent of the run's seed."""
    return np.random.Generator(np.random.PCG64(0)).permutation(length)


def check_train_size(name: str, train_size: int, largest: int) -> None:
    """Raise UserError unless ``1 <= train_size <= largest``."""
    if not (isinstance(train_size, int) and 1 <= train_size <= largest):
        raise UserError(f"{name}: train_size {train_size} is not an integer from 1 to {largest}")


def subset_training_images(dataset: ImageDataset, train_size: int) -> ImageDataset:
    """Reduce the training set to the first ``train_size`` images of the fixed permutation."""
    check_train_size(dataset.name, train_size, len(dataset.train_images))
    kept = fixed_permutation(len(dataset.train_images))[:train_size]
    images = dataset.train_images[kept]
    mean, std = channel_statistics(images)
    return replace(dataset, train_images=images, train_labels=dataset.train_labels[kept], mean=mean, std=std)


def subset_test_images(dataset: ImageDataset, test_size: int) -> ImageDataset:
    """Reduce the test set to a stratified subset, which depends only on the test set and the subset's size.

    Every class keeps its fraction of the images, and at least one. Smaller subsets are contained in larger ones.

    Raises:
        UserError: ``test_size`` is smaller than the number of classes, or larger than the test set.
    """
    labels, classes = dataset.test_labels, len(dataset.classes)
    if not (isinstance(test_size, int) and classes <= test_size <= len(labels)):
        raise UserError(
            f"{dataset.name}: test_size {test_size} is not an integer from {classes}, one image per class, to "
            f"{len(labels)}"
        )
    order = fixed_permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # rank of each image within its class, in the order of the permutation
    counts = np.zeros(classes, np.int64)
    for index in order:
        rank[index] = counts[labels[index]]
        counts[labels[index]] += 1
    place = np.where(rank == 0, 0.0, (rank + 0.5) / counts[labels])
    kept = np.sort(order[np.argsort(place[order], kind="stable")][:test_size])
    return replace(dataset, test_images=dataset.test_images[kept], test_labels=labels[kept])
