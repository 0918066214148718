from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.training import checkpoint


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


def test_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in (".checkpoint.pt.x1", ".result.json.y2", "checkpoint.pt", ".other"):
        (tmp_path / name).touch()
    checkpoint.remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".other"}


def test_tensor_bytes_counts_nested_tensors() -> None:
    state = {"a": torch.zeros(3, dtype=torch.float64), "b": [torch.zeros(2), (torch.zeros(1, dtype=torch.uint8), 5)]}
    assert checkpoint.tensor_bytes(state) == 24 + 8 + 1
