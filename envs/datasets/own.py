"""Your own data: a folder of images, a ``.npz`` file of arrays, or the return value of a function."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastibench.config.errors import UserError
from plastibench.envs.datasets.image_dataset import ImageDataset, Images, build_dataset, fixed_permutation
from plastibench.envs.datasets.imagefolder import load_imagefolder
from plastibench.utils.user_imports import load_own

Array = npt.NDArray[Any]
_IMAGES = ("images", "image", "img", "x", "data", "pixel_values")
_LABELS = ("labels", "label", "y", "targets", "target", "fine_label", "class")
_TEST = ("test", "val", "validation", "valid")
_FORMS = (
    "expected {'train': …, 'test': …}, (train, test) or one of them, each as (images, labels), a torch Dataset, or a "
    "Hugging Face dataset"
)


@dataclass(frozen=True)
class _Part:
    """Images [N, …] and labels [N] of one split, and the class names if the source has them."""

    images: Array
    labels: Array
    names: tuple[str, ...] | None = None


def load_own_data(data_dir: Path, path: str, image_size: int | None = None) -> ImageDataset:
    """Load a user's data.

    Args:
        data_dir: The data folder, for the cache of an image folder.
        path: A folder, as for :func:`load_imagefolder`; ``FILE.npz``; or ``module:function`` or ``file.py:function``
            that takes no arguments and returns a training and a test set. Each is ``(images, labels)``, a torch Dataset
            or a Hugging Face dataset. Without a test set, one fifth of each class is held out.
        image_size: For folders: height and width after resizing.

    Returns:
        The dataset. Channels may be first or last. 8-bit values are kept; floats in [0, 1] and 16-bit integers are
        scaled to 8 bits.

    Raises:
        UserError: The data does not exist or has an unsupported format.
    """
    if Path(path).expanduser().is_dir():
        return load_imagefolder(data_dir, Path(path).expanduser(), image_size)
    if image_size is not None:
        raise UserError("image_size applies only to folders of images; resize your arrays yourself")
    if path.endswith(".npz"):
        train, test = _arrays(Path(path).expanduser())
    elif ":" in path:
        train, test = _returned(path)
    else:
        raise UserError(f"--env.path {path}: no such folder; expected a folder, FILE.npz or module:function")
    if test is None:
        train, test = _hold_out(path, train)
    return _dataset(path, train, test)


def channels_first(images: Array, where: str) -> Array:
    """Images as [N, C, H, W] from [N, H, W], [N, C, H, W] or [N, H, W, C]; channels are the smaller axis."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4 or not images.size:
        raise UserError(
            f"{where}: images have shape {list(images.shape)}; expected [N, H, W], [N, C, H, W] or [N, H, W, C]"
        )
    return images if images.shape[1] <= images.shape[3] else images.transpose(0, 3, 1, 2)


def _dataset(where: str, train: _Part, test: _Part) -> ImageDataset:
    names = [str(name) for name in np.unique(train.labels)]
    known = np.unique(train.labels)
    if unknown := sorted({str(label) for label in np.unique(test.labels)} - set(names)):
        raise UserError(f"{where}: the test class '{unknown[0]}' has no training images; add some, or remove the class")
    if untested := sorted(set(names) - {str(label) for label in np.unique(test.labels)}):
        raise UserError(f"{where}: the class '{untested[0]}' has training images but no test images; add some")
    if len(known) < 2:
        raise UserError(f"{where}: all labels are '{names[0]}'; at least two classes are needed")
    if train.names is not None and known.dtype.kind in "ui" and known.max() < len(train.names):
        names = [train.names[label] for label in known]

    def arrays(part: _Part) -> tuple[Images, Any]:
        images = np.ascontiguousarray(channels_first(_bytes(part.images, where), where))
        return images, np.searchsorted(known, part.labels).astype(np.int64)

    pair = arrays(train), arrays(test)
    if pair[0][0].shape[1:] != pair[1][0].shape[1:]:
        shapes = [list(images.shape[1:]) for images, _ in pair]
        raise UserError(f"{where}: training images have shape {shapes[0]} and test images {shapes[1]}")
    dataset = build_dataset("own", *pair, tuple(names))
    if not any(dataset.std):
        raise UserError(f"{where}: all training images have the same constant value; there is nothing to learn")
    return dataset


def _bytes(images: Array, where: str) -> Images:
    """Convert pixel values to uint8; refuse those whose range is unknown."""
    kind, low, high = images.dtype.kind, images.min(), images.max()
    if images.dtype == np.uint8:
        return images
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255)
    if kind == "f" and low >= 0 and high <= 1:
        return np.rint(images * 255).astype(np.uint8)
    if images.dtype == np.uint16 and high > 255:
        return np.rint(images * (255 / 65535)).astype(np.uint8)
    if kind in "uif" and low >= 0 and high <= 255 and (kind != "f" or bool((images == np.rint(images)).all())):
        return images.astype(np.uint8)
    raise UserError(
        f"{where}: images are {images.dtype} with values from {float(low):g} to {float(high):g}; expected integers "
        "from 0 to 255, or floats from 0 to 1 (plastibench standardizes them itself)"
    )


def _hold_out(where: str, part: _Part) -> tuple[_Part, _Part]:
    """Hold out one fifth of each class (rounded, at least one image), as for image folders."""
    held_out = np.zeros(len(part.labels), bool)
    for label in np.unique(part.labels):
        places = np.flatnonzero(part.labels == label)
        if len(places) < 2:
            raise UserError(
                f"{where}: class '{label}' has only one image; it needs at least two, for training and test"
            )
        held_out[places[fixed_permutation(len(places))[: max(1, (len(places) + 2) // 5)]]] = True
    train, test = (_Part(part.images[kept], part.labels[kept], part.names) for kept in (~held_out, held_out))
    return train, test


def _checked(images: Any, labels: Any, where: str, names: Sequence[str] | None = None) -> _Part:
    images, labels = _numpy(images), _numpy(labels)
    if labels.dtype.kind == "f" and labels.size and bool((labels == np.rint(labels)).all()):
        labels = labels.astype(np.int64)
    if images.dtype.kind not in "uifb" or images.ndim not in (3, 4) or not len(images):
        raise UserError(
            f"{where}: images are {images.dtype} of shape {list(images.shape)}; expected numbers of shape [N, H, W], "
            "[N, C, H, W] or [N, H, W, C]"
        )
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "uiUb":
        raise UserError(
            f"{where}: labels are {labels.dtype} of shape {list(labels.shape)}; expected one integer or name per "
            f"image, shape [{len(images)}]"
        )
    return _Part(images, labels, tuple(names) if names else None)


def _numpy(values: Any) -> Array:
    if hasattr(values, "detach"):  # a tensor on any device
        values = values.detach().cpu().numpy()
    return np.asarray(values)


# Files of arrays --------------------------------------------------------------------------------------------------


def _arrays(path: Path) -> tuple[_Part, _Part | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name.lower(): file[name] for name in file.files}
    except Exception as error:  # a damaged archive fails in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise UserError(f"{path}: cannot load arrays safely ({reason})") from error
    return _named(found, str(path))


def _named(found: Mapping[str, Any], where: str) -> tuple[_Part, _Part | None]:
    """Find the training and the test set among named arrays, such as x_train and y_train, or images and labels."""

    def pick(names: Sequence[str], split: str) -> Any:
        spelled = [name for each in names for name in (f"{each}_{split}", f"{split}_{each}")] if split else names
        return next((found[name] for name in spelled if name in found), None)

    def part(split: str) -> _Part | None:
        images, labels = pick(_IMAGES, split), pick(_LABELS, split)
        if images is None and labels is None:
            return None
        if images is None or labels is None:
            raise UserError(f"{where}: {'images' if images is None else 'labels'} of {split or 'the data'} are missing")
        return _checked(images, labels, where)

    train = part("train") or part("")
    if train is None:
        names = ", ".join(found) or "nothing"
        raise UserError(f"{where}: expected x_train, y_train, x_test and y_test, or images and labels; found {names}")
    return train, next((test for split in _TEST if (test := part(split))), None)


# Functions --------------------------------------------------------------------------------------------------------


def _returned(target: str) -> tuple[_Part, _Part | None]:
    where = f"--env.path {target}"
    function = load_own(target, where)
    try:
        found = function()
        if isinstance(found, Mapping) and not any(name in found for name in ("train", *_TEST)):
            return _named({str(name).lower(): value for name, value in found.items()}, where)
        if isinstance(found, Mapping):
            test = next((found[name] for name in _TEST if name in found), None)
            train = found.get("train")
            if train is None:
                raise UserError(f"{where}: returned no 'train'; {_FORMS}")
        elif isinstance(found, tuple) and len(found) == 2 and not _is_array(found[0]):
            train, test = found
        else:
            train, test = found, None
        return _part(train, where), None if test is None else _part(test, where)
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise UserError(f"{where}: {reason} ({Path(frame.filename).name}, line {frame.lineno})") from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "dtype")


def _part(found: Any, where: str) -> _Part:
    if isinstance(found, tuple) and len(found) == 2 and _is_array(found[0]):
        return _checked(*found, where)
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        raise UserError(f"{where}: returned {type(found).__name__}; {_FORMS}")
    columns = getattr(found, "column_names", None)
    first = found[0]
    keys: tuple[Any, Any] = (0, 1)
    if isinstance(first, Mapping):
        keys = (next((n for n in _IMAGES if n in first), None), next((n for n in _LABELS if n in first), None))
        if None in keys:
            raise UserError(f"{where}: items have {', '.join(map(str, first))}; expected an image and a label")
    names = getattr(found, "classes", None)
    if columns is not None:
        names = getattr(found.features[keys[1]], "names", None)
    elif not (isinstance(first, tuple | list | Mapping) and len(first) >= 2):
        raise UserError(f"{where}: items are {type(first).__name__}; expected (image, label)")
    images, labels = [], []
    for index in range(len(found)):  # an endless iterator would never stop
        item = found[index]
        images.append(_pixels(item[keys[0]]))
        labels.append(_numpy(item[keys[1]]))
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        some = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise UserError(f"{where}: images have different shapes, {some}; resize them to one shape")
    return _checked(np.stack(images), np.stack(labels), where, names if isinstance(names, list | tuple) else None)


def _pixels(image: Any) -> Array:
    if hasattr(image, "convert"):  # a Pillow image
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    return _numpy(image)
