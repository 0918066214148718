"""``run`` and ``diagnose`` read a user's images in the same way, whatever their format."""

from __future__ import annotations

import itertools
import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plastibench.config.errors import UserError
from plastibench.diagnosis.samples import read_samples
from plastibench.envs.datasets import imagefolder, load_dataset
from plastibench.envs.datasets.read_image import fit, read_image

SIZE = 8
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def write(path: Path, content: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, **options)


def with_orientation(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(path, COLOURS, exif=exif)


def palette(path: Path) -> None:
    write(path, Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=64), transparency=3)


def animation(path: Path) -> None:
    first, second = Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=[second], duration=100)


def from_mode(mode: str) -> Callable[[Path], None]:
    return lambda path: write(path, Image.fromarray(COLOURS).convert(mode))


GREY = np.repeat(RAMP[:, :, None], 3, 2)
# name, how the file is written, the pixels that both commands must see
FORMATS: dict[str, tuple[str, Callable[[Path], None], Any]] = {
    "16 bits": ("a.png", lambda path: write(path, RAMP.astype(np.uint16) * 257), GREY),
    "16 bits TIFF": ("a.tif", lambda path: write(path, RAMP.astype(np.uint16) * 257), GREY),
    "32 bits": ("a.tiff", lambda path: write(path, RAMP.astype(np.int32) * 257), GREY),
    "float": ("a.tiff", lambda path: write(path, (RAMP / 255).astype(np.float32)), GREY),
    "grey": ("a.png", lambda path: write(path, RAMP), GREY),
    "one bit": ("a.png", lambda path: write(path, RAMP > 100), np.where(GREY > 100, 255, 0)),
    "RGBA": ("a.png", lambda path: write(path, np.concatenate([COLOURS, RAMP[:, :, None]], 2)), COLOURS),
    "LA": ("a.png", lambda path: write(path, Image.fromarray(RAMP).convert("LA")), GREY),
    "palette": ("a.png", palette, None),
    "CMYK": ("a.tif", from_mode("CMYK"), COLOURS),
    "animation": ("a.gif", animation, GREY),
    "no suffix": ("a", lambda path: write(path, COLOURS, format="PNG"), COLOURS),
    "unicode": ("zwölf 図.png", lambda path: write(path, COLOURS), COLOURS),
    "mirrored": ("a.png", lambda path: with_orientation(path, 2), COLOURS[:, ::-1]),
    "upside down": ("a.png", lambda path: with_orientation(path, 3), COLOURS[::-1, ::-1]),
    "on its side": ("a.png", lambda path: with_orientation(path, 6), np.rot90(COLOURS, -1)),
}


def both(root: Path, data_dir: Path) -> tuple[Any, Any]:
    """The training images of a folder as ``run`` sees them, and the samples of ``diagnose``, standardized."""
    data = load_dataset("imagefolder", data_dir, path=root, image_size=SIZE)
    return data, read_samples(str(root), 64, (3, SIZE, SIZE), data_dir)


def standardized(images: Any) -> Any:
    scaled = images / 255
    return (scaled - scaled.mean((0, 2, 3), keepdims=True)) / scaled.std((0, 2, 3), keepdims=True).clip(1e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_both_commands_see_the_same_pixels(tmp_path: Path, kind: str) -> None:
    name, make, expected = FORMATS[kind]
    root = tmp_path / "images"
    for split, label in itertools.product(("train", "test"), ("cat", "dog")):
        write(root / split / label / "zz.png", RAMP.T.copy())
    make(root / "train" / "cat" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, samples = both(root, tmp_path / "data")
    seen = data.train_images[0]
    assert seen.std() > 20  # no constant
    if expected is not None:
        np.testing.assert_allclose(seen.transpose(1, 2, 0), expected, atol=1)
    assert data.train_labels.tolist() == [0, 0, 1]
    order = [0, 2, 1]  # diagnose takes the classes in turn
    np.testing.assert_allclose(samples.images.numpy(), standardized(data.train_images[order]), atol=1e-4)
    assert samples.labels is not None and samples.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("layout", ["train and test", "classes", "train and val"])
def test_both_commands_skip_what_is_no_image(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "images"
    splits = {"train and test": ["train/", "test/"], "classes": [""], "train and val": ["train/", "val/"]}[layout]
    number = iter(range(99))
    for split, label, _ in itertools.product(splits, ("cat", "dog"), range(2)):
        write(root / f"{split}{label}" / f"{next(number)}.png", np.roll(RAMP, next(number)))
    for split in splits:
        for extra in (".ipynb_checkpoints/0.png", "__MACOSX/0.png", "cat/._0.png", "cat/notes.txt", "cat/Thumbs.db"):
            path = root / f"{split}{extra}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image")
    data, samples = both(root, tmp_path / "data")
    assert data.classes == ("cat", "dog") and samples.classes == 2
    assert len(samples.images) == 4 and len(data.train_images) == (4 if splits != [""] else 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "not a readable image"),
        ("truncated", "not a readable image"),
        ("large float", "floating-point values from 0 to 300; expected 0 to 1"),
        ("nan", "floating-point values from nan to nan; expected 0 to 1"),
        ("small int", "32-bit integers up to 254; store them with 8 or 16 bits"),
        ("large int", "integers from 0 to 70000; expected 16 bits"),
        ("strip", "6000x1 pixels: one side is 100 times the other"),
        ("bomb", "not a readable image (DecompressionBombWarning"),
    ],
)
def test_both_commands_refuse_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, words: str
) -> None:
    root = tmp_path / "images"
    for label, number in itertools.product(("cat", "dog"), range(2)):
        write(root / label / f"{number}.png", np.roll(RAMP, number))
    bad = (
        root
        / "dog"
        / ("0.png" if isinstance(content, bytes) or content in ("truncated", "bomb", "strip") else "0.tiff")
    )
    (root / "dog" / "0.png").unlink()
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif content == "truncated":
        write(bad, np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
        bad.write_bytes(bad.read_bytes()[:5000])
    elif content == "strip":
        write(bad, np.zeros((1, 6000), np.uint8))
    elif content == "bomb":
        write(bad, np.zeros((90, 90), np.uint8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    else:
        values = {
            "large float": np.array([[0, 300]], np.float32),
            "nan": np.array([[0, np.nan]], np.float32),
            "small int": np.array([[0, 254]], np.int32),
            "large int": np.array([[0, 70000]], np.int32),
        }
        write(bad, values[content])
    for read in (
        lambda: load_dataset("imagefolder", tmp_path / "data", path=root, image_size=SIZE),
        lambda: read_samples(str(root), 64, (3, SIZE, SIZE), tmp_path / "data"),
    ):
        with pytest.raises(UserError) as caught:
            read()
        message = str(caught.value)
        assert str(bad) in message and words in message and "\n" not in message


def test_loops_of_links_end_and_broken_links_are_named(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for label, number in itertools.product(("cat", "dog"), range(2)):
        write(root / label / f"{number}.png", np.roll(RAMP, number))
    os.symlink(root, root / "cat" / "loop")
    data, samples = both(root, tmp_path / "data")
    assert data.classes == ("cat", "dog") and len(samples.images) == 4
    os.symlink("me", root / "dog" / "me")
    for read in (
        lambda: load_dataset("imagefolder", tmp_path / "data", path=root),
        lambda: read_samples(str(root), 4, (3, SIZE, SIZE), tmp_path),
    ):
        with pytest.raises(UserError, match="dog/me is a broken link"):
            read()


def test_class_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    root = tmp_path / "images"
    write(root / "train" / composed / "0.png", RAMP)
    write(root / "test" / decomposed / "0.png", RAMP)
    data, samples = both(root, tmp_path / "data")
    assert data.classes == (composed,) and samples.classes == 1
    write(root / "train" / decomposed / "0.png", RAMP.T.copy())
    with pytest.raises(UserError, match="two class folders are called 'Käfer', in different Unicode forms"):
        both(root, tmp_path / "data")


def test_constant_images_are_an_error(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for label, number in itertools.product(("cat", "dog"), range(2)):
        write(root / label / f"{number}.png", np.full((8, 8), 255, np.uint8))
    with pytest.raises(UserError, match="all training images have the same constant value"):
        load_dataset("imagefolder", tmp_path / "data", path=root)
    for folder in (root, root / "cat"):
        with pytest.raises(UserError, match="all images have the same constant value"):
            read_samples(str(folder), 4, (3, 8, 8), tmp_path)
    np.savez(tmp_path / "a.npz", x=np.stack([RAMP, RAMP]))
    with pytest.raises(UserError, match="the 2 images do not differ"):
        read_samples(str(tmp_path / "a.npz"), 4, (1, 8, 8), tmp_path)


def test_caches_of_an_older_reader_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "images"
    for label, number in itertools.product(("cat", "dog"), range(2)):
        write(root / label / f"{number}.png", np.roll(RAMP, number))
    entries = tmp_path / "data" / ".plastibench-cache"
    load_dataset("imagefolder", tmp_path / "data", path=root)
    load_dataset("imagefolder", tmp_path / "data", path=root)
    assert len(list(entries.iterdir())) == 1
    monkeypatch.setattr(imagefolder, "READER", imagefolder.READER - 1)
    load_dataset("imagefolder", tmp_path / "data", path=root)
    assert len(list(entries.iterdir())) == 2


def test_fit_covers_and_crops_the_centre() -> None:
    wide = Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8)[None], 10, 0))
    assert np.asarray(fit(wide, 10, 20)).tolist() == [list(range(10, 30))] * 10
    tall = Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8)[:, None], 10, 1))
    assert np.asarray(fit(tall, 20, 10)).tolist() == [[row] * 10 for row in range(10, 30)]
    assert fit(tall, 33, 7).size == (7, 33)


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"<html></html>"])
def test_unknown_formats_are_refused_without_addresses(content: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.png: not a readable image") as caught:
        read_image(content, "a.png", grey=False)
    assert "0x" not in str(caught.value)
