"""Tiny-ImageNet: 64x64 images of 200 classes (or a subset), from the official folder, archive or URL."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.envs.datasets.cache import cache_entry, load_or_build
from plastibench.envs.datasets.decode import dataset_from_files
from plastibench.envs.datasets.download import MissingData, download_file, download_folder
from plastibench.envs.datasets.image_dataset import ImageDataset
from plastibench.envs.datasets.source import FileSource, fingerprint, scan_folder

_ROOT = "tiny-imagenet-200"
_URL = f"https://cs231n.stanford.edu/{_ROOT}.zip"
# The publisher states no checksum. Several public projects that download this file pin this one, for 248,100,043 bytes.
_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
_LARGEST = 64 << 20  # bytes of a file in the archive


def load_tiny_imagenet(data_dir: Path, download: bool) -> ImageDataset:
    """Load ``data_dir/tiny-imagenet-200/`` or the zip file of this name; download the latter if needed.

    The classes are those of wnids.txt, in its order, that have training images. The test set is the official
    validation set, because the labels of the official test set are not public.
    """
    folder, archive = data_dir / _ROOT, data_dir / f"{_ROOT}.zip"
    if folder.is_dir():
        source, state = scan_folder(folder, depth=4)
        return load_or_build(cache_entry(data_dir, "tiny-imagenet", state), lambda: _decode(source))
    if not archive.is_file():
        _fetch(data_dir, archive, download)
    status = archive.stat()
    state = fingerprint(archive.resolve(), status.st_size, status.st_mtime_ns)
    return load_or_build(cache_entry(data_dir, "tiny-imagenet", state), lambda: _decode_archive(archive))


def _fetch(data_dir: Path, archive: Path, allowed: bool) -> None:
    missing = MissingData(
        "tiny-imagenet", data_dir, f"{_ROOT}/wnids.txt and {archive.name}", f"{archive.name} from {_URL}"
    )
    if not allowed:
        raise missing.error("downloading is disabled")
    with download_folder(missing) as folder:
        download_file(_URL, folder / archive.name, _SHA256)
        os.replace(folder / archive.name, archive)


def _decode_archive(archive: Path) -> ImageDataset:
    """Decode from the archive without unpacking it, so that no name in it can point outside the folder."""
    prefix = f"{_ROOT}/"
    try:
        with zipfile.ZipFile(archive) as opened:
            names = sorted(name.removeprefix(prefix) for name in opened.namelist() if name.startswith(prefix))
            return _decode(FileSource(archive, names, lambda name: _read_member(opened, prefix + name)))
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:  # also of names and versions
        raise UserError(f"{archive}: not a readable zip file ({error}); delete it and download it again") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a file of the archive.

    Raises:
        OSError: It is encrypted, compressed in an unknown way, damaged or too large.
    """
    size = archive.getinfo(name).file_size
    if size > _LARGEST:
        raise OSError(f"{size >> 20} MiB, which is too large for a file of the dataset")
    try:
        return archive.read(name)
    except (RuntimeError, ValueError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise OSError(str(error)) from error


def _decode(source: FileSource) -> ImageDataset:
    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for name in source.names:
        match name.split("/"):
            case ["train", wnid, "images", file] if file:  # archives also list folders, as names ending in "/"
                train.setdefault(wnid, []).append(name)
    wnids = [wnid for wnid in _text(source, "wnids.txt").split() if wnid in train]
    words = dict(line.split("\t", 1) for line in _text(source, "words.txt").splitlines() if "\t" in line)
    for line in _text(source, "val/val_annotations.txt").splitlines():
        file, wnid, *_ = [*line.split("\t"), ""]  # the bounding boxes are optional
        test.setdefault(wnid, []).append(f"val/images/{file}")
    classes = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    train_files, test_files = ([split.get(wnid, []) for wnid in wnids] for split in (train, test))
    return dataset_from_files("tiny-imagenet", source, classes, train_files, test_files, channels=3, size=64)


def _text(source: FileSource, name: str) -> str:
    try:
        return source.read(name).decode()
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{source.root / name}: missing or unreadable ({error}); download {_URL} again") from error
