"""Functions that return data in the forms that users have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

TRAIN = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3)).astype(np.uint8)
TEST = np.random.default_rng(1).integers(0, 256, (8, 6, 5, 3)).astype(np.uint8)
TRAIN_LABELS, TEST_LABELS = np.arange(20) % 4, np.arange(8) % 4
NAMES = ["ant", "bee", "cat", "dog"]


class Pictures(Dataset[Any]):
    """A torch Dataset of Pillow images."""

    classes = NAMES

    def __init__(self, images: Any, labels: Any, transform: Any = Image.fromarray) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index]), int(self.labels[index])


def parts(make: Any) -> dict[str, Any]:
    """A train and a test part."""
    return {"train": make(TRAIN, TRAIN_LABELS), "test": make(TEST, TEST_LABELS)}


def arrays() -> Any:
    """Pairs of arrays."""
    return (TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS)


def named_arrays() -> Any:
    """Arrays by name."""
    return {"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST, "y_test": TEST_LABELS}


def names_as_labels() -> Any:
    """Labels are words."""
    return parts(lambda images, labels: (images, np.array(NAMES)[labels]))


def other_labels() -> Any:
    """Labels do not start at 0."""
    return parts(lambda images, labels: (images, 10 * labels + 7))


def tensors() -> Any:
    """Float tensors with channels first."""
    return parts(lambda i, t: (torch.from_numpy(i).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(t)))


def pictures() -> Any:
    """A torch Dataset of Pillow images."""
    return parts(Pictures)


def transformed() -> Any:
    """A torch Dataset with torchvision's ToTensor."""
    from torchvision.transforms import ToTensor

    return parts(lambda images, labels: Pictures(images, labels, ToTensor()))


def tensor_dataset() -> Any:
    """torch's TensorDataset."""
    return parts(lambda i, t: TensorDataset(torch.from_numpy(i).permute(0, 3, 1, 2), torch.from_numpy(t)))


def sixteen_bits() -> Any:
    """16-bit integers."""
    return parts(lambda images, labels: (images.astype(np.uint16) * 257, labels))


def hugging_face() -> Any:
    """A DatasetDict with images and class labels."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})

    def make(images: Any, labels: Any) -> Any:
        pairs = zip(images, labels.tolist(), strict=True)
        rows = [features.encode_example({"img": Image.fromarray(image), "label": label}) for image, label in pairs]
        table = datasets.table.InMemoryTable.from_pylist(rows, schema=features.arrow_schema)
        info = datasets.DatasetInfo(features=features)
        return datasets.Dataset(
            table, info=info, fingerprint="own"
        )  # computing one fails with some versions of pyarrow

    return datasets.DatasetDict(parts(make))


def without_test() -> Any:
    """One part."""
    return Pictures(TRAIN, TRAIN_LABELS)


def standardized() -> Any:
    """Floats of unknown range."""
    return parts(lambda images, labels: (images / 100 - 1, labels))


def fails() -> Any:
    """Raise an error."""
    raise KeyError("path")


def endless() -> Any:
    """An iterator."""
    return parts(lambda images, labels: iter(images))


def sizes() -> Any:
    """Images of different sizes."""
    return Pictures(TRAIN, TRAIN_LABELS, lambda image: image[: 4 + int(image.sum()) % 2])


def other_classes() -> Any:
    """The test part has other classes."""
    return (TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS + 1)


def no_labels() -> Any:
    """Images alone."""
    return TRAIN


def wrong_labels() -> Any:
    """Fewer labels than images."""
    return (TRAIN, TRAIN_LABELS[:5]), None


def constant() -> Any:
    """Images without content."""
    return parts(lambda images, labels: (np.zeros_like(images), labels))
