"""Logs that cannot be written, and values that TensorBoard cannot show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.config.errors import RunError
from plastibench.config.spec import RunSpec
from plastibench.training.recorder import Recorder
from plastibench.utils import tensorboard_events
from plastibench.utils.tensorboard_events import EventFile, event_files
from tests.support.runs import go, watch_updates

Tiny = Callable[..., RunSpec]


def test_histograms_of_huge_values(tiny: Tiny, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, tiny())
    recorder.histogram(0, "tiny", torch.tensor([-1e-30, 1e-30]))
    recorder.histogram(0, "large", torch.tensor([-1e19, 1e19, 2e19]))
    for largest in (1e20, 3e38):
        with pytest.raises(RunError, match=r"gradient reached .* after update 7: the run diverged; try"):
            recorder.histogram(7, "gradient", torch.tensor([1.0, -largest]))
    recorder.flush()
    (file,) = event_files(tmp_path)
    written = file.read_bytes()
    assert b"tiny" in written and b"large" in written and b"gradient" not in written
    recorder.close()


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_full_disk_is_reported_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_seconds: float
) -> None:
    opened = EventFile.__init__

    def full(self: EventFile, folder: Path) -> None:
        opened(self, folder)
        self._file.close()
        self._file = open("/dev/full", "wb")  # noqa: SIM115 - closing it fails, too
        self._records = tensorboard_events.RecordWriter(self._file)

    monkeypatch.setattr(EventFile, "__init__", full)
    spec = tiny("rnr")
    with pytest.raises(RunError, match=f"^{spec.id}: cannot write to .*: No space left on device$"):
        go(spec, tmp_path, checkpoint_seconds=checkpoint_seconds)
    assert not (tmp_path / spec.id / "result.json").exists()


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_folder_removed_in_mid_run_is_reported(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_seconds: float
) -> None:
    updates: list[int] = []

    def remove(agent: Any, batch: Any) -> None:
        updates.append(1)
        if len(updates) == 3:
            shutil.rmtree(tmp_path / spec.id)

    watch_updates(monkeypatch, remove)
    spec = tiny()
    with pytest.raises(RunError, match=f"^{spec.id}: cannot write .*No such file or directory"):
        go(spec, tmp_path, checkpoint_seconds=checkpoint_seconds)


def test_event_files_sort_in_the_order_of_their_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = ["events.out.tfevents.1790000000.host.12.0", "events.out.tfevents.notes"]  # of SummaryWriter; of others
    for name in older:
        (tmp_path / name).touch()
    made = []
    for seconds in (1_790_000_000, 1_780_000_000, 1_790_000_001, 5):
        monkeypatch.setattr(tensorboard_events.time, "time_ns", lambda now=seconds: now * 10**9)
        file = EventFile(tmp_path)
        file.close()
        made.append(file.path.name)
    assert sorted([older[0], *made]) == [older[0], *made]
