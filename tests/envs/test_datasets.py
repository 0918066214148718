from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from plastibench.config.errors import UserError
from plastibench.envs.datasets import DATASETS, ImageDataset, decode, image_dataset, load_dataset, torchvision_sets

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def assert_same(left: ImageDataset, right: ImageDataset) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert getattr(left, name).dtype == getattr(right, name).dtype
    assert (left.name, left.classes, left.mean, left.std) == (right.name, right.classes, right.mean, right.std)


def user_error(*args: object, **keywords: object) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(*args, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_again(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "_decode_all", decode_again)


def save(path: Path, pixels: object, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training and two test images of two classes, 8x8."""
    root = tmp_path / "images"
    for index, name in enumerate(["train/cat/1", "train/cat/2", "train/dog/1", "test/cat/1", "test/dog/1"]):
        save(root / f"{name}.png", noise(index, 8, 8, 3))
    return root


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def cache_of(data_dir: Path) -> Path:
    (entry,) = [path for path in (data_dir / ".plastibench-cache").iterdir() if not path.name.startswith(".")]
    return entry


# Statistics, names, arguments


def test_channel_statistics_equal_numpy() -> None:
    images = noise(0, 1500, 3, 5, 4)  # more than one chunk of images
    images[:, 1] //= 7
    mean, std = image_dataset.channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)
    assert image_dataset.channel_statistics(images[::-1]) == (mean, std)


def test_import_is_light() -> None:
    program = (
        "import plastibench.envs.datasets, sys; print({'torch', 'torchvision', 'sklearn', 'PIL'} & {*sys.modules})"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_name_suggests_the_closest() -> None:
    assert "did you mean 'cifar100'?" in user_error("cifar-100")
    assert list(DATASETS) == [
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "tiny-imagenet",
        "imagefolder",
        "own",
    ]


def test_path_and_image_size_are_for_imagefolder_only(folder: Path, data_dir: Path) -> None:
    assert "apply only to imagefolder and own" in user_error("digits", image_size=8)
    assert "apply only to imagefolder and own" in user_error("cifar10", path=folder)
    assert "needs --env.path" in user_error("imagefolder")
    assert "is not a folder" in user_error("imagefolder", data_dir, path=folder / "nowhere")
    assert "image_size 0 is not an integer from 1 to" in user_error("imagefolder", data_dir, path=folder, image_size=0)


# Digits


def test_digits_split_is_a_partition(data_dir: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_dataset("digits", data_dir)
    assert digits.train_images.shape == (1200, 1, 8, 8)
    assert digits.test_images.shape == (597, 1, 8, 8)
    assert digits.train_images.max() == 255
    bunch = load_digits()
    all_images = np.concatenate([digits.train_images, digits.test_images]).reshape(1797, 64)
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    given = np.column_stack([all_images, labels])
    source = np.column_stack([np.rint(bunch.images.reshape(1797, 64) * 255 / 16), bunch.target])
    np.testing.assert_array_equal(given[np.lexsort(given.T)], source[np.lexsort(source.T)])  # disjoint and complete
    assert not data_dir.exists()


def test_digits_split_is_fixed_and_nested() -> None:
    small, large = load_dataset("digits", train_size=50), load_dataset("digits", train_size=200)
    assert_same(small, load_dataset("digits", train_size=50))
    np.testing.assert_array_equal(small.train_images, large.train_images[:50])
    assert len(large.test_images) == 1597
    assert set(small.train_labels) == set(range(10))  # shuffled: the original order is 0, 1, 2, ...
    assert small.train_labels[:10].tolist() != list(range(10))
    assert small.mean == image_dataset.channel_statistics(small.train_images)[0] != large.mean


@pytest.mark.parametrize("train_size", [0, -1, 1797, 2.5])
def test_digits_train_size_is_checked(train_size: object) -> None:
    assert f"train_size {train_size} is not an integer from 1 to 1796" in user_error("digits", train_size=train_size)


# Image folders


def test_image_folder_loads_both_splits(folder: Path, data_dir: Path) -> None:
    data = load_dataset("imagefolder", data_dir, path=folder, image_size=8)
    assert data.classes == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 1]
    assert data.test_labels.tolist() == [0, 1]
    for index in range(5):
        image = data.train_images[index] if index < 3 else data.test_images[index - 3]
        np.testing.assert_array_equal(image, noise(index, 8, 8, 3).transpose(2, 0, 1))
    assert data.mean == image_dataset.channel_statistics(data.train_images)[0]
    assert load_dataset("imagefolder", data_dir, path=folder).train_images.shape == (3, 3, 32, 32)


def test_all_image_modes_become_rgb(folder: Path, data_dir: Path) -> None:
    grey, rgba, colours = noise(1, 8, 8), noise(2, 8, 8, 4), noise(3, 4, 3)
    save(folder / "train/cat/3-grey.png", grey)
    save(folder / "train/cat/4-rgba.png", rgba)
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    palette = Image.frombytes("P", (8, 8), indices.tobytes())
    palette.putpalette(colours.ravel().tolist())
    palette.save(folder / "train/cat/5-palette.png", transparency=bytes([0, 9, 255, 255]))
    (folder / "train/cat/.DS_Store").write_bytes(b"hidden files are ignored")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset("imagefolder", data_dir, path=folder, image_size=8)
    assert data.train_labels.tolist() == [0, 0, 0, 0, 0, 1]
    np.testing.assert_array_equal(data.train_images[2], np.stack([grey] * 3))
    np.testing.assert_array_equal(data.train_images[3], rgba[:, :, :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(data.train_images[4], colours[indices].transpose(2, 0, 1))


def test_longer_side_is_centre_cropped(folder: Path, data_dir: Path) -> None:
    tall = np.zeros((40, 8, 3), np.uint8)
    tall[16:24] = noise(4, 8, 8, 3)
    wide = np.zeros((16, 60, 3), np.uint8)
    wide[:, 16:44] = 10 * np.arange(16)[:, None, None]
    save(folder / "train/cat/1.png", tall)
    save(folder / "train/cat/2.png", wide)
    data = load_dataset("imagefolder", data_dir, path=folder, image_size=8)
    np.testing.assert_array_equal(data.train_images[0], tall[16:24].transpose(2, 0, 1))
    rows = data.train_images[1, 0].astype(int)
    assert (rows == rows[:, :1]).all()  # cropped in the centre: no black sides
    np.testing.assert_allclose(rows[:, 0], 5 + 20 * np.arange(8), atol=5)  # resized, not cropped, vertically


@pytest.mark.parametrize("damage", ["truncated", "not an image"])
def test_unreadable_image_error_names_the_file(folder: Path, data_dir: Path, damage: str) -> None:
    bad = save(folder / "train/dog/broken.png", noise(0, 64, 64, 3))
    if damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:5000])
    else:
        bad.write_text("hello")
    assert str(bad) in user_error("imagefolder", data_dir, path=folder)


def test_splits_need_the_same_classes(folder: Path, data_dir: Path) -> None:
    save(folder / "test/owl/1.png", noise(0, 8, 8))
    assert "class 'owl' has test but no training images" in user_error("imagefolder", data_dir, path=folder)


def test_incomplete_split_is_not_read_as_classes(folder: Path, data_dir: Path) -> None:
    shutil.rmtree(folder / "test")
    assert "no images in test/<class>/*" in user_error("imagefolder", data_dir, path=folder)
    (folder / "train").rename(folder / "val")
    assert "no images in train/<class>/*" in user_error("imagefolder", data_dir, path=folder)
    shutil.rmtree(folder / "val")
    assert "create one folder per class" in user_error("imagefolder", data_dir, path=folder)


@pytest.mark.parametrize("split", ["train/", "test/", ""])
def test_images_below_a_class_folder_are_not_ignored(tmp_path: Path, data_dir: Path, split: str) -> None:
    root = tmp_path / "images"
    for number, where in enumerate(["train/", "test/"] if split else ["", ""]):
        save(root / f"{where}cat" / f"{number}.png", noise(number, 8, 8))
    left_crop = save(root / f"{split}cat/crops/left.png", noise(2, 8, 8))
    save(root / f"{split}cat/crops/right.png", noise(3, 8, 8))
    message = user_error("imagefolder", data_dir, path=root)
    assert f"{left_crop} is in a subfolder of a class folder (2 such images)" in message


def test_val_is_used_as_test(folder: Path, data_dir: Path) -> None:
    with_test = load_dataset("imagefolder", data_dir, path=folder)
    (folder / "test").rename(folder / "val")
    assert_same(load_dataset("imagefolder", data_dir, path=folder), with_test)


def test_without_a_split_one_fifth_of_each_class_is_held_out(tmp_path: Path, data_dir: Path) -> None:
    root = tmp_path / "flat"
    for label, count, level in (("a", 10, 0), ("b", 3, 100), ("a-b", 2, 200)):
        for index in range(count):
            save(root / label / f"{index}.png", np.full((4, 4), level + index))
    data = load_dataset("imagefolder", data_dir, path=root, image_size=4)
    assert data.classes == ("a", "a-b", "b")
    assert np.bincount(data.test_labels).tolist() == [2, 1, 1]
    train, test = (images[:, 0, 0, 0].tolist() for images in (data.train_images, data.test_images))
    assert sorted(train + test) == [*range(10), 100, 101, 102, 200, 201]  # disjoint and complete
    assert [level // 100 for level in test] == [0, 0, 2, 1]  # grouped by class
    shutil.rmtree(data_dir)
    assert_same(load_dataset("imagefolder", data_dir, path=root, image_size=4), data)
    for index in range(1, 3):
        (root / "b" / f"{index}.png").unlink()
    assert f"{root / 'b'}: only one image; a class needs two" in user_error("imagefolder", data_dir, path=root)


def test_train_size_selects_a_fixed_subset(folder: Path, data_dir: Path) -> None:
    full = load_dataset("imagefolder", data_dir, path=folder)
    for size in (1, 2, 3):
        part = load_dataset("imagefolder", data_dir, path=folder, train_size=size)
        kept = np.random.Generator(np.random.PCG64(0)).permutation(3)[:size]
        np.testing.assert_array_equal(part.train_images, full.train_images[kept])
        np.testing.assert_array_equal(part.train_labels, full.train_labels[kept])
        np.testing.assert_array_equal(part.test_images, full.test_images)
        assert part.mean == image_dataset.channel_statistics(part.train_images)[0]
    assert "train_size 4 is not an integer from 1 to 3" in user_error(
        "imagefolder", data_dir, path=folder, train_size=4
    )


def test_test_size_selects_a_fixed_stratified_part(tmp_path: Path, data_dir: Path) -> None:
    counts = {"a": 50, "b": 20, "c": 9, "d": 1}
    for (label, count), split in itertools.product(counts.items(), ("train", "test")):
        for index in range(count if split == "test" else 1):
            save(tmp_path / "own" / split / label / f"{index:02}.png", noise(hash_of(label, split, index), 4, 4, 3))
    full = load_dataset("imagefolder", data_dir, path=tmp_path / "own", image_size=4)
    parts = {
        size: load_dataset("imagefolder", data_dir, path=tmp_path / "own", image_size=4, test_size=size)
        for size in (4, 8, 16, 40, 79, 80)
    }
    places = {image.tobytes(): index for index, image in enumerate(full.test_images)}
    kept = {size: [places[image.tobytes()] for image in part.test_images] for size, part in parts.items()}
    for size, part in parts.items():
        assert len(part.test_labels) == size and sorted(kept[size]) == kept[size]
        np.testing.assert_array_equal(part.test_labels, full.test_labels[kept[size]])
        np.testing.assert_array_equal(part.train_images, full.train_images)
        wanted = np.array([*counts.values()]) * size / 80
        assert (np.abs(np.bincount(part.test_labels, minlength=4) - wanted) <= 1.5).all(), size
        assert np.bincount(part.test_labels, minlength=4).min() >= 1
    for small, large in itertools.pairwise(kept.values()):
        assert set(small) < set(large)
    assert len({part.digest for part in parts.values()}) == 6 and parts[80].digest == full.digest
    digits = load_dataset("digits", train_size=200, test_size=100)
    assert np.bincount(digits.test_labels).tolist() == [10] * 10
    assert digits.test_images.tobytes() == load_dataset("digits", train_size=200, test_size=100).test_images.tobytes()
    for wrong in (3, 81):
        message = user_error("imagefolder", data_dir, path=tmp_path / "own", image_size=4, test_size=wrong)
        assert f"test_size {wrong} is not an integer from 4, one image per class, to 80" in message


def hash_of(*parts: object) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


# The cache


def test_cached_dataset_is_equal_and_not_decoded_again(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_dataset("imagefolder", data_dir, path=folder)
    forbid_decoding(monkeypatch)
    assert_same(load_dataset("imagefolder", data_dir, path=folder), first)
    assert [path.name for path in data_dir.iterdir()] == [".plastibench-cache"]
    assert sorted(path.name for path in cache_of(data_dir).iterdir()) == [
        "meta.json",
        *sorted(f"{a}.npy" for a in ARRAYS),
    ]
    assert list((data_dir / ".plastibench-cache").iterdir()) == [cache_of(data_dir)]  # no temporary files remain
    with pytest.raises(AssertionError, match="decoded again"):
        load_dataset("imagefolder", data_dir, path=folder, image_size=16)


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed"])
def test_changed_source_is_decoded_again(folder: Path, data_dir: Path, change: str) -> None:
    load_dataset("imagefolder", data_dir, path=folder, image_size=8)
    first, second = folder / "train/cat/1.png", folder / "train/cat/2.png"
    if change == "content":
        save(first, noise(99, 8, 8, 3))
    elif change == "time":  # same name and size: only the modification time differs
        os.utime(first, ns=(0, 1))
    elif change == "added":
        save(folder / "train/cat/3.png", noise(99, 8, 8, 3))
    elif change == "removed":
        second.unlink()
    else:
        second.rename(folder / "train/dog/0.png")  # the order of all images is the same
    again = load_dataset("imagefolder", data_dir, path=folder, image_size=8)
    assert len(list((data_dir / ".plastibench-cache").iterdir())) == 2
    expected = {"content": [0, 0, 1], "time": [0, 0, 1], "added": [0, 0, 0, 1], "removed": [0, 1], "renamed": [0, 1, 1]}
    assert again.train_labels.tolist() == expected[change]
    if change == "content":
        np.testing.assert_array_equal(again.train_images[0], noise(99, 8, 8, 3).transpose(2, 0, 1))


def flip_a_byte(entry: Path) -> None:
    content = bytearray((entry / "train_images.npy").read_bytes())
    content[-1] ^= 1
    (entry / "train_images.npy").write_bytes(content)


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


DAMAGES = {
    "flipped byte": flip_a_byte,
    "truncated": lambda entry: os.truncate(entry / "test_images.npy", 100),
    "missing array": lambda entry: (entry / "test_labels.npy").unlink(),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "half meta": lambda entry: os.truncate(entry / "meta.json", 40),
    "other mean": lambda entry: replace_in(entry / "meta.json", '"mean": [', '"mean": [0.1, '),
    "other name": lambda entry: replace_in(entry / "meta.json", '"name": "i', '"name": "j'),
    "other meta": lambda entry: (entry / "meta.json").write_text('{"format": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt(folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    first = load_dataset("imagefolder", data_dir, path=folder)
    DAMAGES[damage](cache_of(data_dir))
    assert_same(load_dataset("imagefolder", data_dir, path=folder), first)
    forbid_decoding(monkeypatch)
    assert_same(load_dataset("imagefolder", data_dir, path=folder), first)
    assert list((data_dir / ".plastibench-cache").iterdir()) == [cache_of(data_dir)]


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (1001, 10)])
def test_an_image_of_extreme_shape_is_refused(folder: Path, data_dir: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(folder / "train/cat/1.png")
    message = user_error("imagefolder", data_dir, path=folder, image_size=1024)
    assert f"cat/1.png: not a readable image (ValueError: {size[0]}x{size[1]} pixels" in message


def test_unwritable_cache_warns_once(folder: Path, data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / ".plastibench-cache").write_text("a file instead of a folder")
    with pytest.warns(UserWarning, match="imagefolder is not cached: cannot write") as caught:
        data = load_dataset("imagefolder", data_dir, path=folder)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert len(data.train_images) == 3


def test_failed_rename_of_the_cache_warns(folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match=r"is not cached: cannot write .* \(Permission denied\)"):
        load_dataset("imagefolder", data_dir, path=folder)
    assert list((data_dir / ".plastibench-cache").iterdir()) == []


def test_concurrent_processes_can_store_the_same_entry(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_all = decode._decode_all

    def decode_while_another_stores(*args: object) -> np.ndarray:
        monkeypatch.setattr(decode, "_decode_all", decode_all)
        load_dataset("imagefolder", data_dir, path=folder)
        return decode_all(*args)

    monkeypatch.setattr(decode, "_decode_all", decode_while_another_stores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset("imagefolder", data_dir, path=folder)
    forbid_decoding(monkeypatch)
    assert_same(load_dataset("imagefolder", data_dir, path=folder), data)


# MNIST and CIFAR


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six training and two test images in MNIST format that torchvision accepts as the official files."""
    from torchvision.datasets import MNIST

    folder = tmp_path / "net"
    folder.mkdir()
    parts = [noise(0, 6, 28, 28), np.arange(6, dtype=np.uint8), noise(1, 2, 28, 28), np.array([9, 0], np.uint8)]
    resources, archives = [], {}
    for (name, _), part in zip(MNIST.resources, parts, strict=True):
        content = gzip.compress(idx(part))
        (folder / name).write_bytes(content)
        resources.append((name, hashlib.md5(content).hexdigest()))
        archives[f"MNIST/raw/{name}"] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(MNIST, "resources", resources)
    small = replace(torchvision_sets.TORCHVISION_SETS["mnist"], archives=archives)
    monkeypatch.setitem(torchvision_sets.TORCHVISION_SETS, "mnist", small)
    return folder


def let_torchvision_download_from(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from torchvision.datasets import utils

    def copy(url: str, filename: str) -> None:
        assert url.startswith("https://")
        assert socket.getdefaulttimeout() == 20
        shutil.copy(folder / url.rsplit("/", 1)[1], filename)

    monkeypatch.setattr(utils, "_urlretrieve", copy)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)


def assert_is_small_mnist(data: ImageDataset) -> None:
    np.testing.assert_array_equal(data.train_images, noise(0, 6, 28, 28)[:, None])
    np.testing.assert_array_equal(data.test_images, noise(1, 2, 28, 28)[:, None])
    assert data.train_labels.tolist() == list(range(6))
    assert data.test_labels.tolist() == [9, 0]
    assert len(data.classes) == 10


def test_download_keeps_verified_archives(
    mnist_archives: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_torchvision_download_from(monkeypatch, mnist_archives)
    assert_is_small_mnist(load_dataset("mnist", data_dir))
    assert socket.getdefaulttimeout() is None
    assert sorted(path.name for path in data_dir.iterdir()) == [".plastibench-cache", "MNIST"]
    shutil.rmtree(mnist_archives)
    shutil.rmtree(data_dir / ".plastibench-cache")
    assert_is_small_mnist(load_dataset("mnist", data_dir, download=False))  # from the kept archives
    assert cache_of(data_dir).name == "mnist-v1"
    shutil.rmtree(data_dir / "MNIST")
    assert_is_small_mnist(load_dataset("mnist", data_dir, download=False))  # from the cache
    flip_a_byte(cache_of(data_dir))
    message = user_error("mnist", data_dir, download=False)
    assert f"{cache_of(data_dir) / 'train_images.npy'} is damaged" in message
    assert f"delete {cache_of(data_dir)} and download the data again" in message


def test_replaced_unpacked_mnist_is_read_again(mnist_archives: Path, data_dir: Path) -> None:
    raw = data_dir / "MNIST/raw"
    raw.mkdir(parents=True)
    for archive in mnist_archives.iterdir():
        (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
    first = load_dataset("mnist", data_dir, download=False)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:16] + bytes(images.stat().st_size - 16))
    os.utime(images, ns=(0, 0))
    second = load_dataset("mnist", data_dir, download=False)
    assert first.train_images.any() and not second.train_images.any()


def test_unpacked_mnist_is_read_and_checked(mnist_archives: Path, data_dir: Path) -> None:
    raw = data_dir / "MNIST/raw"
    raw.mkdir(parents=True)
    for archive in mnist_archives.iterdir():
        (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
    assert_is_small_mnist(load_dataset("mnist", data_dir, download=False))
    shutil.rmtree(data_dir / ".plastibench-cache")
    os.truncate(raw / "train-images-idx3-ubyte", 2000)
    assert f"{raw} is incomplete or damaged" in user_error("mnist", data_dir, download=False)


@pytest.mark.parametrize(
    ("file", "position", "value", "message"),
    [
        ("train-labels-idx1-ubyte", 8, 200, "mnist: a training image has label 200, but labels are 0 to 9"),
        ("t10k-labels-idx1-ubyte", 9, 10, "mnist: a test image has label 10, but labels are 0 to 9"),
        ("train-images-idx3-ubyte", 2, 99, "is incomplete or damaged"),  # the code of an unknown type
        ("train-images-idx3-ubyte", 3, 200, "is incomplete or damaged"),  # the number of dimensions
        ("train-images-idx3-ubyte", 8, 255, "is incomplete or damaged"),  # a size
    ],
)
def test_unpacked_mnist_with_a_wrong_byte_is_refused(
    mnist_archives: Path, data_dir: Path, file: str, position: int, value: int, message: str
) -> None:
    raw = data_dir / "MNIST/raw"
    raw.mkdir(parents=True)
    for archive in mnist_archives.iterdir():
        (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
    content = bytearray((raw / file).read_bytes())
    content[position] = value
    (raw / file).write_bytes(content)
    assert message in user_error("mnist", data_dir, download=False)
    (raw / file).write_bytes(b"")
    assert "is incomplete or damaged" in user_error("mnist", data_dir, download=False)


def test_corrupt_download_leaves_no_files(
    mnist_archives: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_torchvision_download_from(monkeypatch, mnist_archives)
    last = mnist_archives / "t10k-labels-idx1-ubyte.gz"
    complete = last.read_bytes()
    last.write_bytes(complete[:-3])
    assert "the download failed (RuntimeError: " in user_error("mnist", data_dir)
    assert list(data_dir.iterdir()) == []
    last.write_bytes(complete)
    assert_is_small_mnist(load_dataset("mnist", data_dir))


def test_a_download_is_checked_by_sha256(mnist_archives: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_torchvision_download_from(monkeypatch, mnist_archives)
    small = torchvision_sets.TORCHVISION_SETS["mnist"]  # torchvision still accepts the MD5
    other = replace(small, archives={**small.archives, "MNIST/raw/t10k-labels-idx1-ubyte.gz": "0" * 64})
    monkeypatch.setitem(torchvision_sets.TORCHVISION_SETS, "mnist", other)
    assert f"expected {'0' * 64}" in user_error("mnist", data_dir)
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("name", torchvision_sets.TORCHVISION_SETS)
def test_official_archives_are_those_of_torchvision(name: str) -> None:
    import torchvision

    known = torchvision_sets.TORCHVISION_SETS[name]
    of_torchvision = getattr(torchvision.datasets, known.torchvision_class)
    names = [file for file, _ in getattr(of_torchvision, "resources", ())] or [of_torchvision.filename]
    assert [Path(archive).name for archive in known.archives] == names
    assert known.origin.startswith("https://") and known.origin.endswith("/")
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in known.archives.values())


@pytest.fixture
def cifar10(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten training and two test images in CIFAR-10 format that torchvision accepts as the official files."""
    from torchvision.datasets import CIFAR10

    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(seed: int) -> dict[str, object]:
        return {"data": noise(seed, 2, 3072), "labels": [seed, 0]}

    names = [name for name, _ in CIFAR10.train_list]
    monkeypatch.setattr(CIFAR10, "train_list", [[name, write(name, batch(i))] for i, name in enumerate(names)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(9))]])
    labels = {"label_names": [f"class {i}" for i in range(10)]}
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": write("batches.meta", labels)})
    return folder


def test_cifar_in_torchvision_layout(cifar10: Path, data_dir: Path) -> None:
    data = load_dataset("cifar10", data_dir, download=False)
    assert data.train_images.shape == (10, 3, 32, 32)
    np.testing.assert_array_equal(data.train_images[2:4].reshape(2, 3072), noise(1, 2, 3072))
    np.testing.assert_array_equal(data.test_images.reshape(2, 3072), noise(9, 2, 3072))
    assert data.train_labels.tolist() == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0]
    assert data.classes[3] == "class 3"


def test_cifar_with_a_wrong_checksum_is_not_unpickled(
    cifar10: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cifar10 / "data_batch_3").write_bytes(pickle.dumps({"data": noise(2, 2, 3072), "labels": [1, 1]}))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    assert f"{cifar10} is incomplete or damaged" in user_error("cifar10", data_dir, download=False)


def test_cifar_from_an_image_folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, name in enumerate(["train/bee/000", "train/ant/000", "test/ant/000", "test/bee/000"]):
        save(data_dir / f"cifar100/{name}.png", noise(index, 32, 32, 3))
    monkeypatch.setattr(torchvision_sets, "_load_official", lambda *_: pytest.fail("used the official files"))
    data = load_dataset("cifar100", data_dir)
    assert data.name == "cifar100"
    assert data.classes == ("ant", "bee")
    np.testing.assert_array_equal(data.train_images[0], noise(1, 32, 32, 3).transpose(2, 0, 1))
    odd = save(data_dir / "cifar100/train/bee/001.png", noise(0, 32, 33, 3))
    assert f"{odd}: 33x32 pixels, expected 32x32" in user_error("cifar100", data_dir)


def test_mnist_from_an_image_folder_is_greyscale(data_dir: Path) -> None:
    for split in ("train", "test"):
        save(data_dir / f"fashion-mnist/{split}/boot/0.png", noise(5, 28, 28))
    data = load_dataset("fashion-mnist", data_dir, download=False)
    np.testing.assert_array_equal(data.train_images, noise(5, 28, 28)[None, None])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
    ],
)
def test_missing_data_error_says_what_to_download(
    name: str, file: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = user_error(name, data_dir, download=False)
    assert not data_dir.exists()

    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    failed = user_error(name, data_dir)
    assert "the download failed" in failed
    assert "Name or service not known" in failed
    for text in (message, failed):
        assert f"{name} is not in {data_dir}" in text
        assert f"{file}" in text
        assert "cl-digits" in text
    assert list(data_dir.iterdir()) == []
    assert socket.getdefaulttimeout() is None


# Tiny-ImageNet


@pytest.fixture
def tiny(data_dir: Path) -> Path:
    """Two of three classes in the official layout; one training image is a greyscale JPEG."""
    root = data_dir / "tiny-imagenet-200"
    for index, name in enumerate(["n02/images/n02_0", "n02/images/n02_1", "n01/images/n01_0"]):
        pixels = noise(index, 64, 64) if index == 1 else noise(index, 64, 64, 3)
        save(root / f"train/{name}.JPEG", pixels)
    (root / "train/n02/n02_boxes.txt").write_text("n02_0.JPEG\t0\t0\t62\t62\n")
    for index in range(3):
        save(root / f"val/images/val_{index}.JPEG", noise(10 + index, 64, 64, 3))
    rows = ["val_0.JPEG\tn01\t0\t32\t44\t62", "val_1.JPEG\tn03\t0\t0\t9\t9", "val_2.JPEG\tn02"]
    (root / "val/val_annotations.txt").write_text("\n".join(rows) + "\n")
    (root / "wnids.txt").write_text("n02\nn03\nn01\n")
    (root / "words.txt").write_text("n00\tentity\nn02\tbullfrog, Rana catesbeiana\n")
    return root


def assert_is_small_tiny(data: ImageDataset) -> None:
    def decoded(pixels: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG")
        return np.asarray(Image.open(stream).convert("RGB")).transpose(2, 0, 1)

    assert data.classes == ("bullfrog", "n01")  # in the order of wnids.txt
    assert data.train_labels.tolist() == [0, 0, 1]
    assert data.test_labels.tolist() == [0, 1]
    grey = decoded(noise(1, 64, 64))
    assert (grey[0] == grey[2]).all()
    colour = [decoded(noise(seed, 64, 64, 3)) for seed in (0, 2, 12, 10)]
    np.testing.assert_array_equal(data.train_images, [colour[0], grey, colour[1]])
    np.testing.assert_array_equal(data.test_images, colour[2:])


def test_tiny_imagenet_folder(tiny: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_is_small_tiny(load_dataset("tiny-imagenet", data_dir, download=False))
    forbid_decoding(monkeypatch)
    assert_is_small_tiny(load_dataset("tiny-imagenet", data_dir, download=False))


def test_tiny_imagenet_archive(tiny: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.make_archive(str(tiny), "zip", data_dir, tiny.name)
    archive = data_dir / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../outside.txt", "not to be unpacked")
        assert "tiny-imagenet-200/train/n01/images/" in opened.namelist()  # a folder entry is not an image
    shutil.rmtree(tiny)
    assert_is_small_tiny(load_dataset("tiny-imagenet", data_dir, download=False))
    assert sorted(path.name for path in data_dir.iterdir()) == [".plastibench-cache", archive.name]
    archive.write_bytes(archive.read_bytes()[:-200])
    assert f"{archive}: not a readable zip file" in user_error("tiny-imagenet", data_dir, download=False)


@pytest.mark.parametrize("name", ["wnids.txt", "train/n01/images/n01_0.JPEG"])
@pytest.mark.parametrize("harm", ["encrypted", "compression", "bzip2", "huge"])
def test_tiny_imagenet_archives_that_cannot_be_read(tiny: Path, data_dir: Path, harm: str, name: str) -> None:
    archive = data_dir / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for path in sorted(tiny.rglob("*.*")):
            opened.write(path, path.relative_to(data_dir))
    content, member = bytearray(archive.read_bytes()), f"tiny-imagenet-200/{name}".encode()
    for signature, start in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # local header, central directory
        found = next(
            at
            for at in range(len(content))
            if content[at : at + 4] == signature and content[at + 4 :].find(member) in (26, 42)
        )
        if harm == "encrypted":
            content[found + start] |= 1
        elif harm == "huge":
            content[found + start + 16 : found + start + 20] = (1 << 30).to_bytes(4, "little")
        else:
            content[found + start + 2] = 99 if harm == "compression" else zipfile.ZIP_BZIP2
    archive.write_bytes(content)
    shutil.rmtree(tiny)
    assert f"{archive}/{name}: " in user_error("tiny-imagenet", data_dir, download=False)


def test_tiny_imagenet_with_a_wrong_checksum_is_not_kept(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"not the official archive")
    let_torchvision_download_from(monkeypatch, tmp_path)
    assert "the download failed" in user_error("tiny-imagenet", data_dir)
    assert list(data_dir.iterdir()) == []


def test_tiny_imagenet_class_without_test_images(tiny: Path, data_dir: Path) -> None:
    (tiny / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\n")
    assert "no test images of class 'bullfrog'" in user_error("tiny-imagenet", data_dir, download=False)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("wnids.txt", "wnids.txt"),
        ("val/val_annotations.txt", "val_annotations.txt"),
        ("val/images/val_0.JPEG", "val_0.JPEG"),
        ("train", "no training images"),
    ],
)
def test_incomplete_tiny_imagenet_error_names_the_file(tiny: Path, data_dir: Path, lost: str, named: str) -> None:
    (tiny / lost).rename(data_dir / "elsewhere")
    assert named in user_error("tiny-imagenet", data_dir, download=False)


# Real data


@pytest.fixture(scope="module")
def real_data() -> Path:
    if "PLASTIBENCH_TEST_DATA" not in os.environ:
        pytest.skip("PLASTIBENCH_TEST_DATA is not set")
    return Path(os.environ["PLASTIBENCH_TEST_DATA"])


@pytest.mark.data
def test_real_cifar100(real_data: Path) -> None:
    data = load_dataset("cifar100", real_data, download=False)
    assert data.train_images.shape == (50_000, 3, 32, 32)
    assert data.test_images.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.train_labels).tolist() == [500] * 100
    assert np.bincount(data.test_labels).tolist() == [100] * 100
    np.testing.assert_allclose(data.mean, [0.50707516, 0.48654887, 0.44091784], atol=1e-6)
    np.testing.assert_allclose(data.std, [0.26733429, 0.25643846, 0.27615047], atol=1e-6)


@pytest.mark.data
def test_real_tiny_imagenet(real_data: Path) -> None:
    data = load_dataset("tiny-imagenet", real_data, download=False)
    classes = len(data.classes)
    assert classes >= 100
    assert data.train_images.shape == (500 * classes, 3, 64, 64)
    assert data.test_images.shape == (50 * classes, 3, 64, 64)
    assert set(np.bincount(data.train_labels)) == {500}
    assert set(np.bincount(data.test_labels)) == {50}


def test_digest_depends_on_every_array() -> None:
    digits = load_dataset("digits")
    assert digits.digest == load_dataset("digits").digest
    others = [load_dataset("digits", train_size=500).digest]
    for name in ARRAYS:
        array = getattr(digits, name).copy()
        array.flat[-1] += 1
        others.append(replace(digits, **{name: array}).digest)
    assert len({digits.digest, *others}) == 1 + len(others)
