"""Cache of decoded datasets. Entries are written atomically and verified by checksums when read.

The folder ``.plastibench-cache`` in the data folder can be deleted at any time.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plastibench.config.errors import UserError
from plastibench.envs.datasets.image_dataset import ImageDataset
from plastibench.utils import digests

CACHE = ".plastibench-cache"  # in the data folder
FORMAT = 1
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class _DamagedCacheError(Exception):
    """Raised for a damaged cache entry; the message names the file."""


def cache_entry(data_dir: Path, name: str, fingerprint: str = "") -> Path:
    """Return the folder of a cache entry.

    Args:
        data_dir: The data folder.
        name: Name of the dataset; sufficient for sources with known checksums.
        fingerprint: Identifies the state of any other source.
    """
    return data_dir / CACHE / "-".join(filter(None, (name, fingerprint, f"v{FORMAT}")))


def load_or_build(entry: Path, build: Callable[[], ImageDataset]) -> ImageDataset:
    """Read the cache entry; if it is missing or damaged, build the dataset and store it."""
    damage = None
    if entry.is_dir():
        try:
            return _read(entry)
        except _DamagedCacheError as error:
            damage = error
    try:
        dataset = build()
    except UserError as error:
        if damage is None:
            raise
        raise UserError(
            f"{damage}; it cannot be rebuilt ({error}): delete {entry} and download the data again"
        ) from error
    try:
        _store(entry, dataset)
    except OSError as error:  # read-only or full disk: the next run decodes again
        warnings.warn(f"{dataset.name} is not cached: cannot write {entry} ({error.strerror or error})", stacklevel=2)
    return dataset


def _read(entry: Path) -> ImageDataset:
    file = entry / "meta.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, expected {FORMAT}")
        if not digests.is_intact(meta):
            raise ValueError("wrong checksum")
        arrays = {}
        for array_name in _ARRAYS:
            file = entry / f"{array_name}.npy"
            expected = meta["arrays"][array_name]
            if digests.file_digest(file) != expected["sha256"]:
                raise ValueError("wrong checksum")
            arrays[array_name] = np.load(file, allow_pickle=False)
            if list(arrays[array_name].shape) != expected["shape"]:
                raise ValueError("wrong shape")
        classes, mean, std = (tuple(meta[key]) for key in ("classes", "mean", "std"))
        return ImageDataset(meta["name"], **arrays, classes=classes, mean=mean, std=std)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _DamagedCacheError(f"{file} is damaged ({reason})") from error


def _store(entry: Path, dataset: ImageDataset) -> None:
    """Write the entry to a temporary folder and rename it, so that readers never see an incomplete entry."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=entry.parent) as temporary:
        fresh = Path(temporary, "fresh")
        fresh.mkdir()
        checks = {}
        for array_name in _ARRAYS:
            array = getattr(dataset, array_name)
            file = fresh / f"{array_name}.npy"
            np.save(file, array, allow_pickle=False)
            checks[array_name] = {"shape": array.shape, "sha256": digests.file_digest(file)}
        meta = {
            "format": FORMAT,
            "name": dataset.name,
            "classes": dataset.classes,
            "mean": dataset.mean,
            "std": dataset.std,
            "arrays": checks,
        }
        meta[digests.KEY] = digests.json_digest(meta)
        (fresh / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        try:
            if entry.exists():  # damaged: rename fails if the target exists
                os.replace(entry, Path(temporary, "damaged"))
            os.replace(fresh, entry)
        except OSError:
            if not entry.is_dir():  # otherwise another process stored the same entry first
                raise
