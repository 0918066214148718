"""The digits dataset of scikit-learn: real images without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plastibench.config.errors import UserError
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
    table = _table()
    images = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    size = DEFAULT_TRAIN_SIZE if train_size is None else train_size
    check_train_size("digits", size, len(images) - 1)  # at least one test image
    order = fixed_permutation(len(images))
    train, test = ((images[part], labels[part]) for part in (order[:size], order[size:]))
    return build_dataset("digits", train, test, tuple("0123456789"))


def _table() -> npt.NDArray[np.float64]:
    """The 64 values and the label of each image, float64 [1797, 65].

    This reads scikit-learn's file, as its ``load_digits`` does, but does not import scikit-learn, which takes a second.
    """
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the digits are part of scikit-learn, which is not installed: pip install scikit-learn")
    return np.loadtxt(Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
