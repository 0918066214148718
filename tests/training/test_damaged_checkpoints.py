"""Checkpoints that do not belong to the run are refused; damaged ones are, unless the previous one is intact."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.training import checkpoint
from plastibench.utils import atomic_io
from tests.support.runs import Stopped, assert_same_run, crash_at, flip, go

Tiny = Callable[..., RunSpec]


@pytest.fixture
def twice_saved(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunSpec, Path]:
    """An interrupted run with two checkpoints, and the newest of them."""
    spec = tiny(agent_options={"dropout": 0.2})
    crash_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0)
    return spec, tmp_path / spec.id / checkpoint.LATEST


@pytest.fixture
def interrupted(twice_saved: tuple[RunSpec, Path]) -> tuple[RunSpec, Path]:
    """The same with one checkpoint."""
    twice_saved[1].with_name(checkpoint.PREVIOUS).unlink()
    return twice_saved


def refused(spec: RunSpec, path: Path) -> str:
    damaged = path.read_bytes()
    with pytest.raises(UserError) as caught:
        go(spec, path.parent.parent)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "delete" in message
    assert path.read_bytes() == damaged and not (path.parent / "result.json").exists()
    return message


def test_truncated_checkpoint_is_refused(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    intact = path.read_bytes()
    for length in (0, 1, 4, 100, len(intact) // 2, len(intact) - 100, len(intact) - 1):
        path.write_bytes(intact[:length])
        refused(spec, path)


def test_checkpoint_with_flipped_bytes_is_refused(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    intact = path.read_bytes()
    starts = [intact.index(b"data.pkl") + 200, intact.index(b"/data/0") + 150, len(intact) - 30]
    for start in starts:
        path.write_bytes(intact[:start] + bytes(255 - byte for byte in intact[start : start + 8]) + intact[start + 8 :])
        refused(spec, path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"\x80\x04K\x01.", b"\x80\x02}q\x00.", bytes(range(256)), b"PK\x03\x04" + bytes(100)],
)
def test_checkpoint_of_arbitrary_bytes_is_refused(interrupted: tuple[RunSpec, Path], content: bytes) -> None:
    spec, path = interrupted
    path.write_bytes(content)
    refused(spec, path)


@pytest.mark.parametrize("state", [[1, 2], {}, {"a": 1}, {"position": [0, 1, 1, 4]}])
def test_checkpoint_with_unexpected_content_is_refused(interrupted: tuple[RunSpec, Path], state: Any) -> None:
    spec, path = interrupted
    torch.save(state, path)
    refused(spec, path)


def test_checkpoint_of_another_run_is_refused(
    tiny: Tiny, interrupted: tuple[RunSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = interrupted
    other = tiny(agent_options={"dim": 32})
    crash_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        go(other, path.parent.parent, checkpoint_seconds=0)
    path.write_bytes((path.parent.parent / other.id / "checkpoint.pt").read_bytes())
    refused(spec, path)


def test_one_flipped_bit_is_noticed(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    intact = path.read_bytes()
    weights_at = intact.index(b"/data/0") + 150  # torch's reader accepts other weights
    for bit in (8 * weights_at, 8 * weights_at + 800, 4 * len(intact)):
        flip(path, bit)
        assert "SHA-256" in refused(spec, path)
        path.write_bytes(intact)


@pytest.mark.sample(2)
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete", "log of the newest"])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    twice_saved: tuple[RunSpec, Path], tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, path = twice_saved
    go(spec, tmp_path / "uninterrupted")
    damaged = path
    if harm == "log of the newest":
        damaged = path.with_name("metrics.csv")
        covered = [
            checkpoint.load(path.with_name(n))["files"]["metrics.csv"][0] for n in (path.name, checkpoint.PREVIOUS)
        ]
        assert covered[0] > covered[1]
        os.truncate(damaged, covered[1])
    elif harm == "delete":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"truncate": content[:-500], "empty": b""}.get(harm, content))
        if harm == "flip":
            flip(path, 4 * len(content))
    capsys.readouterr()
    go(spec, tmp_path)
    said = capsys.readouterr().err
    if harm == "delete":
        assert said == ""
    else:
        assert said.count("\n") == 1 and str(damaged) in said
        assert "continuing from checkpoint.previous.pt instead" in said
    assert_same_run(path.parent, tmp_path / "uninterrupted" / spec.id)


def test_a_damaged_checkpoint_does_not_become_the_previous_one(
    twice_saved: tuple[RunSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = twice_saved
    flip(path, 4 * path.stat().st_size)
    crash_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        go(spec, path.parent.parent, checkpoint_seconds=0)
    for saved in checkpoint.saved_checkpoints(path.parent):
        assert checkpoint.load(saved)["trainer"]["learner"]["updates"] in (1, 2)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_malicious_checkpoint_is_refused_and_not_executed(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    trap = path.parent / "executed"
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert trap.exists()  # unpickling does execute it
    trap.unlink()
    for save in (torch.save, lambda state, file: file.write_bytes(pickle.dumps(state))):
        save({"position": Bomb(trap)}, path)
        refused(spec, path)
        assert not trap.exists()


def test_full_disk_keeps_the_previous_checkpoint(
    tiny: Tiny, interrupted: tuple[RunSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = interrupted
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_io.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        go(spec, path.parent.parent, checkpoint_seconds=0)
    assert path.read_bytes() == before
    assert not [name for name in path.parent.iterdir() if name.name.startswith(".")]
    monkeypatch.undo()
    assert math.isfinite(go(spec, path.parent.parent)["summary"]["final_accuracy"])
