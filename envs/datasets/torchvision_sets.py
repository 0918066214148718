"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, from torchvision or an image folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plastibench.config.errors import UserError
from plastibench.envs.datasets.cache import cache_entry, load_or_build
from plastibench.envs.datasets.download import MissingData, download_folder
from plastibench.envs.datasets.image_dataset import ImageDataset, Images, Labels, build_dataset
from plastibench.envs.datasets.imagefolder import load_class_folders
from plastibench.envs.datasets.source import fingerprint
from plastibench.utils.wording import plural


@dataclass(frozen=True)
class _Set:
    """A dataset of torchvision.

    Attributes:
        torchvision_class: Its class in torchvision.datasets.
        unpacked: The folder that torchvision reads, relative to the data folder.
        archives: The official archives as torchvision stores them, relative to the data folder.
        channels: Number of channels, 1 or 3.
        size: Height and width.
    """

    torchvision_class: str
    unpacked: str
    archives: tuple[str, ...]
    channels: int
    size: int


def _mnist(torchvision_class: str) -> _Set:
    folder = f"{torchvision_class}/raw"
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return _Set(torchvision_class, folder, tuple(f"{folder}/{part}-ubyte.gz" for part in parts), channels=1, size=28)


TORCHVISION_SETS = {
    "mnist": _mnist("MNIST"),
    "fashion-mnist": _mnist("FashionMNIST"),
    "cifar10": _Set("CIFAR10", "cifar-10-batches-py", ("cifar-10-python.tar.gz",), channels=3, size=32),
    "cifar100": _Set("CIFAR100", "cifar-100-python", ("cifar-100-python.tar.gz",), channels=3, size=32),
}


def load_torchvision_set(name: str, data_dir: Path, download: bool) -> ImageDataset:
    """Load from the cache, torchvision's files, an image folder ``data_dir/<name>``, or the internet, in this order."""
    spec = TORCHVISION_SETS[name]
    entry = cache_entry(data_dir, name, _fingerprint_of_unpacked(spec, data_dir))
    official = (entry, data_dir / spec.unpacked, data_dir / spec.archives[0])
    if (data_dir / name / "train").is_dir() and not any(path.exists() for path in official):
        return load_class_folders(name, data_dir, data_dir / name, channels=spec.channels, size=spec.size)
    return load_or_build(entry, lambda: _load_official(name, spec, data_dir, download))


def _fingerprint_of_unpacked(spec: _Set, data_dir: Path) -> str:
    """Fingerprint unpacked MNIST files without archives, which have no checksum in torchvision; else return ''."""
    raw = data_dir / spec.unpacked
    if raw.name != "raw" or not raw.is_dir() or all((data_dir / archive).exists() for archive in spec.archives):
        return ""
    states = [(path.name, path.stat()) for path in sorted(raw.iterdir())]
    return fingerprint(*((name, state.st_size, state.st_mtime_ns) for name, state in states))


def _load_official(name: str, spec: _Set, data_dir: Path, download: bool) -> ImageDataset:
    import torchvision  # imports torch, which takes seconds and is not needed for cached data
    from torchvision.datasets.utils import check_integrity

    dataset_class = getattr(torchvision.datasets, spec.torchvision_class)
    if hasattr(dataset_class, "resources"):
        checksums, origin = dict(dataset_class.resources), dataset_class.mirrors[0]
    else:
        checksums, origin = {dataset_class.filename: dataset_class.tgz_md5}, dataset_class.url
    archives = [data_dir / archive for archive in spec.archives]
    missing = MissingData(
        name,
        data_dir,
        f"{spec.unpacked}/, {spec.archives[0]} and {name}/{{train,test}}/<class>/*.png",
        f"{', '.join(spec.archives)} from {origin}",
    )

    # Prefer the archives: torchvision has no checksums for unpacked MNIST files. Unpack them to a temporary folder:
    # torchvision takes an interrupted unpacking of MNIST for complete, and the data folder may be read-only.
    if all(check_integrity(archive, checksums[archive.name]) for archive in archives):
        with tempfile.TemporaryDirectory(prefix="plastibench-") as temporary:
            for archive, relative in zip(archives, spec.archives, strict=True):
                Path(temporary, relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(archive, Path(temporary, relative))
            return _read(name, spec, dataset_class, Path(temporary), download=True)  # downloads nothing
    damage = ""
    if (data_dir / spec.unpacked).is_dir():
        try:
            return _read(name, spec, dataset_class, data_dir, download=False)
        except UserError:
            raise
        except Exception:  # incomplete, wrong checksum, truncated: torchvision's parsers fail in many ways
            damage = f"{data_dir / spec.unpacked} is incomplete or damaged, "
    if not download:
        raise missing.error(f"{damage}downloading is disabled")
    with download_folder(missing) as folder:
        dataset = _read(name, spec, dataset_class, folder, download=True)
        for archive, relative in zip(archives, spec.archives, strict=True):
            archive.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / relative, archive)
    return dataset


def _read(name: str, spec: _Set, dataset_class: Any, root: Path, download: bool) -> ImageDataset:
    """Read both splits with the class of torchvision, which checks the MD5 of CIFAR's pickle files before opening."""
    splits = [dataset_class(str(root), train=train, download=download) for train in (True, False)]

    def arrays(split: Any) -> tuple[Images, Labels]:
        images = np.asarray(split.data, np.uint8).reshape(-1, spec.size, spec.size, spec.channels)
        labels = np.asarray(split.targets, np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{plural(len(images), 'image')} but {plural(len(labels), 'label')}")
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels

    return build_dataset(name, arrays(splits[0]), arrays(splits[1]), tuple(splits[0].classes))
