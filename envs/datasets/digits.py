"""The digits dataset of scikit-learn: real images without a download."""

from __future__ import annotations

import numpy as np

from plastibench.envs.datasets.image_dataset import ImageDataset, build_dataset, check_train_size, fixed_permutation

DEFAULT_TRAIN_SIZE = 1200


def load_digits(train_size: int | None = None) -> ImageDataset:
    """Load the 1,797 greyscale 8x8 digits.

    The dataset has no official split. The first ``train_size`` images of a fixed permutation are the training set and
    the others the test set, so splits of different sizes are nested.

    Args:
        train_size: Number of training images, 1 to 1,796 (default: 1,200).

    Returns:
        Images uint8 [N, 1, 8, 8]; the original values 0 to 16 are scaled to 0 to 255.
    """
    from sklearn.datasets import load_digits as load_bunch  # importing scikit-learn takes a second

    bunch = load_bunch()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    size = DEFAULT_TRAIN_SIZE if train_size is None else train_size
    check_train_size("digits", size, len(images) - 1)  # at least one test image
    order = fixed_permutation(len(images))
    train, test = ((images[part], labels[part]) for part in (order[:size], order[size:]))
    return build_dataset("digits", train, test, tuple("0123456789"))
