from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.training import checkpoint
from tests.support.runs import flip


def test_load_returns_what_was_saved(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": [1, 2.5, "x", None], "c": {"d": (True, {"e": torch.ones(2)})}}
    checkpoint.save(tmp_path / "c.pt", state)
    found = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(found["a"], state["a"]) and found["b"] == state["b"]
    assert torch.equal(found["c"]["d"][1]["e"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "problem"), [(b"damaged", "cannot be read"), (None, "contains no state")], ids=["damaged", "a list"]
)
def test_damaged_checkpoints_are_user_errors(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "c.pt"
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"c.pt {problem}"):
        checkpoint.load(path)


def test_files_without_a_digest_are_loaded(tmp_path: Path) -> None:
    for name, new_format in (("a.pt", True), ("b.pt", False)):
        torch.save({"a": torch.arange(3)}, tmp_path / name, _use_new_zipfile_serialization=new_format)
        assert checkpoint.load(tmp_path / name)["a"].tolist() == [0, 1, 2]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"a": torch.arange(50.0), "b": [1, 2.5, "x"]})
    bits = 8 * path.stat().st_size
    for bit in (*range(0, bits, 397), *range(bits - 800, bits, 13)):
        flip(path, bit)
        with pytest.raises(UserError, match=r"c\.pt cannot be read"):
            checkpoint.load(path)
        flip(path, bit)
    assert checkpoint.load(path)["b"] == [1, 2.5, "x"]


def test_the_replaced_checkpoint_is_kept(tmp_path: Path) -> None:
    latest, previous = tmp_path / checkpoint.LATEST, tmp_path / checkpoint.PREVIOUS
    for number in range(3):
        checkpoint.save(latest, {"number": number}, previous=previous)
        assert checkpoint.load(latest)["number"] == number
        assert previous.exists() == (number > 0)
    assert checkpoint.load(previous)["number"] == 1
    assert checkpoint.saved_checkpoints(tmp_path) == [latest, previous]
    latest.unlink()
    assert checkpoint.saved_checkpoints(tmp_path) == [previous]
    checkpoint.remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tensor_bytes_counts_nested_tensors() -> None:
    state = {"a": torch.zeros(3, dtype=torch.float64), "b": [torch.zeros(2), (torch.zeros(1, dtype=torch.uint8), 5)]}
    assert checkpoint.tensor_bytes(state) == 24 + 8 + 1
