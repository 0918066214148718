"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, from torchvision or an image folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plastibench.config.errors import UserError
from plastibench.envs.datasets.cache import cache_entry, load_or_build
from plastibench.envs.datasets.download import MissingData, download_file, download_folder
from plastibench.envs.datasets.image_dataset import ImageDataset, Images, Labels, build_dataset
from plastibench.envs.datasets.imagefolder import load_class_folders
from plastibench.envs.datasets.source import fingerprint
from plastibench.utils.digests import file_digest
from plastibench.utils.wording import plural


@dataclass(frozen=True)
class _Set:
    """A dataset of torchvision.

    Attributes:
        torchvision_class: Its class in torchvision.datasets.
        unpacked: The folder that torchvision reads, relative to the data folder.
        origin: Address of the folder that contains the official archives.
        archives: The archives as torchvision stores them, relative to the data folder, and their SHA-256.
        channels: Number of channels, 1 or 3.
        size: Height and width.
    """

    torchvision_class: str
    unpacked: str
    origin: str
    archives: Mapping[str, str]
    channels: int
    size: int


def _mnist(torchvision_class: str, origin: str, *sha256: str) -> _Set:
    folder = f"{torchvision_class}/raw"
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    archives = {f"{folder}/{part}-ubyte.gz": digest for part, digest in zip(parts, sha256, strict=True)}
    return _Set(torchvision_class, folder, origin, archives, channels=1, size=28)


def _cifar(torchvision_class: str, unpacked: str, archive: str, sha256: str) -> _Set:
    origin = "https://www.cs.toronto.edu/~kriz/"
    return _Set(torchvision_class, unpacked, origin, {archive: sha256}, channels=3, size=32)


# The checksums are those of TensorFlow Datasets (MNIST, Fashion-MNIST) and of Keras (CIFAR). torchvision has only MD5
# checksums, and downloads Fashion-MNIST over http.
TORCHVISION_SETS = {
    "mnist": _mnist(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion-mnist": _mnist(
        "FashionMNIST",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "cifar10": _cifar(
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100": _cifar(
        "CIFAR100",
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
}


def load_torchvision_set(name: str, data_dir: Path, download: bool) -> ImageDataset:
    """Load from the cache, torchvision's files, an image folder ``data_dir/<name>``, or the internet, in this order."""
    spec = TORCHVISION_SETS[name]
    entry = cache_entry(data_dir, name, _fingerprint_of_unpacked(spec, data_dir))
    official = (entry, data_dir / spec.unpacked, data_dir / next(iter(spec.archives)))
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

    dataset_class = getattr(torchvision.datasets, spec.torchvision_class)
    missing = MissingData(
        name,
        data_dir,
        f"{spec.unpacked}/, {next(iter(spec.archives))} and {name}/{{train,test}}/<class>/*.png",
        f"{', '.join(spec.archives)} from {spec.origin}",
    )

    # Prefer the archives: torchvision has no checksums for unpacked MNIST files. Unpack them to a temporary folder:
    # torchvision takes an interrupted unpacking of MNIST for complete, and the data folder may be read-only.
    archives = {data_dir / archive: sha256 for archive, sha256 in spec.archives.items()}
    if all(archive.is_file() and file_digest(archive) == sha256 for archive, sha256 in archives.items()):
        with tempfile.TemporaryDirectory(prefix="plastibench-") as temporary:
            for archive in archives:
                copy = Path(temporary, archive.relative_to(data_dir))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(archive, copy)
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
        for relative, sha256 in spec.archives.items():
            download_file(spec.origin + Path(relative).name, folder / relative, sha256)
        dataset = _read(name, spec, dataset_class, folder, download=True)  # downloads nothing more
        for archive in archives:
            archive.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / archive.relative_to(data_dir), archive)
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
