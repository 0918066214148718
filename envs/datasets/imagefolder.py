"""Image folders: one folder per class, in any format that Pillow reads."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.envs.datasets.cache import cache_entry, load_or_build
from plastibench.envs.datasets.decode import dataset_from_files
from plastibench.envs.datasets.image_dataset import ImageDataset, fixed_permutation
from plastibench.envs.datasets.read_image import READER, may_be_image
from plastibench.envs.datasets.source import FileSource, fingerprint, scan_folder

DEFAULT_IMAGE_SIZE = 32
LARGEST_IMAGE_SIZE = 1024
_DEPTH = 12  # below train/<class>/*, to report images that are stored there


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
    dataset = load_class_folders("imagefolder", data_dir, path, channels=3, size=size, fit=True)
    if not any(dataset.std):
        raise UserError(f"{path}: all training images have the same constant value; there is nothing to learn")
    return dataset


def load_class_folders(
    name: str, data_dir: Path, path: Path, *, channels: int, size: int, fit: bool = False
) -> ImageDataset:
    """Load a folder with one subfolder per class; arguments as in :func:`dataset_from_files`."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; expected a folder with train/<class>/* and test/<class>/*")
    source, state = scan_folder(path, depth=_DEPTH)

    def build() -> ImageDataset:
        train, test = _splits(source)
        classes = sorted(train)
        train_files, test_files = ([split[label] for label in classes] for split in (train, test))
        return dataset_from_files(name, source, classes, train_files, test_files, channels=channels, size=size, fit=fit)

    reader = (READER,) if fit else ()  # the official images are read as before
    return load_or_build(cache_entry(data_dir, name, fingerprint(state, size, *reader)), build)


def training_files(path: Path) -> tuple[FileSource, dict[str, list[str]]]:
    """List the images of a user's folder that a run could train on, by class.

    Args:
        path: A folder with ``train/<class>/*``, ``<class>/*``, or images without classes.

    Returns:
        The source, and its file names by class; images without classes have the class ``""``.

    Raises:
        UserError: It contains no images.
    """
    source, _ = scan_folder(path, depth=_DEPTH)
    train, _ = _layout(source)
    flat = [name for name in source.names if "/" not in name and may_be_image(name)]
    if not train and not flat:
        raise UserError(f"{path}: no images in train/<class>/*, <class>/* or the folder itself")
    return source, train or {"": flat}


def _splits(source: FileSource) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return training and test file names by class; both have the same classes."""
    train, test = _layout(source)
    if train and test is None:
        return _hold_out(source.root, train)
    if train and test:
        _check_same_classes(source.root, train, test)
        return train, test
    if train or test:
        missing = "test/<class>/* (or val/<class>/*)" if train else "train/<class>/*"
        raise UserError(f"{source.root}: no images in {missing}; add them, or keep only <class>/* folders at the top")
    raise UserError(f"{source.root}: no images in train/<class>/* or <class>/*; create one folder per class")


def _layout(source: FileSource) -> tuple[dict[str, list[str]], dict[str, list[str]] | None]:
    """Training and test file names by class; the test files are None if the folder has no splits."""
    names = [name for name in source.names if may_be_image(name)]
    train = _by_class(source.root, names, "train/")
    test = _by_class(source.root, names, "test/") or _by_class(source.root, names, "val/")
    return (train, test) if train or test else (_by_class(source.root, names, ""), None)


def _by_class(root: Path, names: list[str], prefix: str) -> dict[str, list[str]]:
    """Collect ``prefix<class>/*`` by class.

    Raises:
        UserError: All or some of the images of a class are in subfolders, which could be anything: parts, masks, crops.
    """
    by_class: dict[str, list[str]] = {}
    deeper = []
    for name in names:
        folders = name.removeprefix(prefix).split("/")[:-1]
        if not name.startswith(prefix) or not folders:
            continue
        if len(folders) > 1:
            deeper.append(name)
        else:
            by_class.setdefault(_class_name(root, folders[0], by_class), []).append(name)
    if by_class and deeper:
        raise UserError(
            f"{root / deeper[0]} is in a subfolder of a class folder ({len(deeper)} such images); "
            "move these images into the class folder, or elsewhere if they should not be used"
        )
    return by_class


def _class_name(root: Path, folder: str, known: dict[str, list[str]]) -> str:
    """Return the name of a class folder in composed Unicode form, because file systems store different forms.

    Raises:
        UserError: Another folder has the same name in another form.
    """
    name = unicodedata.normalize("NFC", folder)
    if any(file.split("/")[-2] != folder for file in known.get(name, ())[:1]):
        raise UserError(f"{root}: two class folders are called '{name}', in different Unicode forms; rename one")
    return name


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
            raise UserError(f"{root / label}: only one image; a class needs two, for training and test")
        held_out = set(fixed_permutation(len(files))[: max(1, (len(files) + 2) // 5)].tolist())
        train[label] = [file for index, file in enumerate(files) if index not in held_out]
        test[label] = [file for index, file in enumerate(files) if index in held_out]
    return train, test
