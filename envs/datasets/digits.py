"""The digits that scikit-learn carries: a real data set without any file or download."""

from __future__ import annotations

import numpy as np

from plastibench.envs.datasets.image_dataset import ImageDataset, build_dataset, check_train_size, fixed_permutation

DEFAULT_TRAIN_SIZE = 1200


def load_digits(train_size: int | None = None) -> ImageDataset:
    """Load the 1,797 greyscale 8x8 digits.

    The set has no official split. The first ``train_size`` images (1,200 unless told) of a fixed permutation are
    for training and all others for testing, so splits of different sizes are nested.

    Args:
        train_size: How many images to train on, 1 to 1,796.

    Returns:
        Images uint8 [*, 1, 8, 8]; the set's values 0..16 are scaled to 0..255.
    """
    from sklearn.datasets import load_digits as load_bunch  # here: importing scikit-learn takes a second

    bunch = load_bunch()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    size = DEFAULT_TRAIN_SIZE if train_size is None else train_size
    check_train_size("digits", size, len(images) - 1)  # at least one image is left to test on
    order = fixed_permutation(len(images))
    train, test = ((images[part], labels[part]) for part in (order[:size], order[size:]))
    return build_dataset("digits", train, test, tuple("0123456789"))
