"""Image folders: one folder per class, in any format that Pillow reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.envs.datasets.cache import cache_entry, load_or_build
from plastibench.envs.datasets.decode import dataset_from_files
from plastibench.envs.datasets.image_dataset import ImageDataset, fixed_permutation
from plastibench.envs.datasets.source import FileSource, fingerprint, scan_folder

DEFAULT_IMAGE_SIZE = 32
LARGEST_IMAGE_SIZE = 1024


def load_imagefolder(data_dir: Path, path: Path, image_size: int | None = None) -> ImageDataset:
    """Load ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``val`` if there is no ``test``) as RGB.

    If there is only ``path/<class>/*``, one fifth of each class (rounded, at least one image) is held out as the test
    set, chosen by a fixed permutation of the sorted file names.

    Args:
        data_dir: The data folder, for the cache.
        path: The image folder.
        image_size: The shorter side of each image is resized to this, then the longer side is centre-cropped
            (default: 32).
    """
    size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
    if not (isinstance(size, int) and 1 <= size <= LARGEST_IMAGE_SIZE):
        raise UserError(f"image_size {size} is not an integer from 1 to {LARGEST_IMAGE_SIZE}")
    return load_class_folders("imagefolder", data_dir, path, channels=3, size=size, fit=True)


def load_class_folders(
    name: str, data_dir: Path, path: Path, *, channels: int, size: int, fit: bool = False
) -> ImageDataset:
    """Load a folder with one subfolder per class; arguments as in :func:`dataset_from_files`."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give one with train/<class>/* and test/<class>/*")
    source, state = scan_folder(path, depth=3)

    def build() -> ImageDataset:
        train, test = _splits(source)
        classes = sorted(train)
        train_files, test_files = ([split[label] for label in classes] for split in (train, test))
        return dataset_from_files(name, source, classes, train_files, test_files, channels=channels, size=size, fit=fit)

    return load_or_build(cache_entry(data_dir, name, fingerprint(state, size)), build)


def _splits(source: FileSource) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return training and test file names by class; both have the same classes."""
    paths = [name.split("/") for name in source.names]
    by_split: dict[str, dict[str, list[str]]] = {}
    for parts in paths:
        if len(parts) == 3:
            by_split.setdefault(parts[0], {}).setdefault(parts[1], []).append("/".join(parts))
    train, test = by_split.get("train"), by_split.get("test") or by_split.get("val")
    if train and test:
        _check_same_classes(source.root, train, test)
        return train, test
    if train or test:
        missing = "test/<class>/* (or val/<class>/*)" if train else "train/<class>/*"
        raise UserError(f"{source.root}: no images in {missing}; add them, or keep only <class>/* folders at the top")
    unsplit: dict[str, list[str]] = {}
    for parts in paths:
        if len(parts) == 2:
            unsplit.setdefault(parts[0], []).append("/".join(parts))
    if not unsplit:
        raise UserError(f"{source.root}: no images in train/<class>/* or <class>/*; create one folder per class")
    return _hold_out(source.root, unsplit)


def _check_same_classes(root: Path, train: Mapping[str, object], test: Mapping[str, object]) -> None:
    if different := sorted(train.keys() ^ test.keys()):
        label = different[0]
        present, missing = ("training", "test") if label in train else ("test", "training")
        raise UserError(
            f"{root}: class '{label}' has {present} but no {missing} images ({len(different)} such classes); "
            "both splits need the same class folders"
        )


def _hold_out(root: Path, unsplit: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for label, files in unsplit.items():
        if len(files) < 2:
            raise UserError(f"{root / label}: one image cannot be split into training and test; add another")
        held_out = set(fixed_permutation(len(files))[: max(1, (len(files) + 2) // 5)].tolist())
        train[label] = [file for index, file in enumerate(files) if index not in held_out]
        test[label] = [file for index, file in enumerate(files) if index in held_out]
    return train, test
