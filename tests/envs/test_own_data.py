"""Your own data as arrays, torch Datasets and Hugging Face datasets: the same images and labels, whatever the form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.diagnosis.samples import read_samples
from plastibench.envs.datasets import load_dataset
from tests.support import own_data
from tests.support.runs import go

MODULE = "tests.support.own_data"
FORMS = [
    *("arrays", "named_arrays", "names_as_labels", "other_labels", "tensors", "pictures", "transformed"),
    *("tensor_dataset", "sixteen_bits", "hugging_face"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_dataset(tmp_path: Path, form: str) -> None:
    if form == "hugging_face":
        pytest.importorskip("datasets")
    data = load_dataset("own", tmp_path, path=f"{MODULE}:{form}")
    np.testing.assert_array_equal(data.train_images, own_data.TRAIN.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test_images, own_data.TEST.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.train_labels, own_data.TRAIN_LABELS)
    np.testing.assert_array_equal(data.test_labels, own_data.TEST_LABELS)
    words = form in ("names_as_labels", "pictures", "transformed", "hugging_face")
    numbers = ("7", "17", "27", "37") if form == "other_labels" else ("0", "1", "2", "3")
    assert data.classes == (tuple(own_data.NAMES) if words else numbers)
    assert data.digest == load_dataset("own", tmp_path, path=f"{MODULE}:arrays").digest


@pytest.mark.parametrize("keys", ["x_train y_train x_test y_test", "train_images train_labels val_images val_labels"])
def test_npz_files_give_the_same_dataset(tmp_path: Path, keys: str) -> None:
    contents = (own_data.TRAIN, own_data.TRAIN_LABELS, own_data.TEST, own_data.TEST_LABELS)
    np.savez(tmp_path / "a.npz", **dict(zip(keys.split(), contents, strict=True)))
    data = load_dataset("own", tmp_path, path=tmp_path / "a.npz", train_size=10, test_size=4)
    assert len(data.train_images) == 10 and np.bincount(data.test_labels).tolist() == [1] * 4
    full = load_dataset("own", tmp_path, path=tmp_path / "a.npz")
    assert full.digest == load_dataset("own", tmp_path, path=f"{MODULE}:arrays").digest


def test_a_folder_is_read_like_an_image_folder(tmp_path: Path) -> None:
    for label, number in ((label, number) for label in "ab" for number in range(3)):
        (tmp_path / "f" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(own_data.TRAIN[number]).save(tmp_path / "f" / label / f"{number}.png")
    pair = [load_dataset(name, tmp_path, path=tmp_path / "f", image_size=5) for name in ("own", "imagefolder")]
    assert pair[0].digest == pair[1].digest


def test_without_a_test_part_one_fifth_of_each_class_is_held_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=own_data.TRAIN, labels=own_data.TRAIN_LABELS)
    for path in (tmp_path / "a.npz", f"{MODULE}:without_test"):
        data = load_dataset("own", tmp_path, path=path)
        assert np.bincount(data.test_labels).tolist() == [1] * 4 and np.bincount(data.train_labels).tolist() == [4] * 4
        both = np.concatenate([data.train_images, data.test_images])
        assert {image.tobytes() for image in both} == {
            np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in own_data.TRAIN
        }


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("standardized", "images are float64 with values from -1 to 1.55; expected integers from 0 to 255"),
        ("fails", "KeyError: 'path' (own_data.py, line "),
        ("endless", "returned iterator; expected {'train'"),
        ("sizes", "images have different shapes, [4, 5, 3] and [5, 5, 3]"),
        ("other_classes", "the test class '4' has no training images"),
        ("no_labels", "items are ndarray; expected (image, label)"),
        ("wrong_labels", "labels are int64 of shape [5]; expected one integer or name per image, shape [20]"),
        ("constant", "all training images have the same constant value"),
        ("fail", "has no 'fail'; did you mean 'fails'?"),
    ],
)
def test_wrong_data_is_one_line(tmp_path: Path, function: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("own", tmp_path, path=f"{MODULE}:{function}")
    message = str(caught.value)
    assert words in message and "\n" not in message and function in message and " 0x" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rubbish", "cannot load arrays safely"),
        ({"x_train": own_data.TRAIN}, "labels of train are missing"),
        ({"q": np.zeros(3)}, "expected x_train, y_train, x_test and y_test, or images and labels; found q"),
        ({"x": np.zeros((4, 3)), "y": np.arange(4)}, "images are float64 of shape [4, 3]; expected numbers of shape"),
        ({"x": own_data.TRAIN, "y": np.zeros(20, int)}, "all labels are '0'; at least two classes are needed"),
        ({"x": own_data.TRAIN, "y": np.arange(20)}, "class '0' has only one image; it needs at least two"),
        ({"x": np.array([{}] * 4, object), "y": np.arange(4)}, "cannot load arrays safely"),
        (None, "a.npz: cannot load arrays safely (FileNotFoundError"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, content: Any, words: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "a.npz").write_bytes(content)
    elif content is not None:
        np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError) as caught:
        load_dataset("own", tmp_path, path=tmp_path / "a.npz")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_own_data_trains_and_can_be_diagnosed(tmp_path: Path) -> None:
    for env in ("cl-own", "relabel-own", "permuted-own", "incremental-own", "warm-own"):
        options = {"path": f"{MODULE}:pictures", "epochs": 1, "stop_after": 2}
        spec = RunSpec.make(env, "mlp", env_options=options, agent_options={"width": 4}, device="cpu")
        found = go(spec, tmp_path)
        assert found["data_digest"] and len(found["tasks"]) == 2
    samples = read_samples(f"{MODULE}:pictures", 8, (3, 6, 5), tmp_path)
    assert samples.classes == 4 and samples.images.shape == (8, 3, 6, 5)
