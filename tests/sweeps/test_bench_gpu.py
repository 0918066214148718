from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.sweeps.benchmark import gpu_runs, gpu_session
from plastibench.sweeps.benchmark.gpu_measures import MEASURES, NotSupported
from plastibench.sweeps.benchmark.gpu_report import JSON_FILE, MARKDOWN_FILE
from plastibench.sweeps.benchmark.gpu_rows import Row, Sizes, all_rows
from plastibench.sweeps.benchmark.gpu_session import measure_gpu

SIZES = Sizes(updates=1, rounds=2, rehearsal=True, device="cpu")
ROW = Row("rnr", "vit-tiny")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when a row is measured."""
    clock = [0.0]
    monkeypatch.setattr(gpu_session.time, "monotonic", lambda: clock[0])
    here = {"hardware": {"processor": "p", "cores": 2, "device": "cpu"}, "torch": "2", "commit": "c"}
    monkeypatch.setattr(gpu_session.provenance, "session", lambda device: here)
    return clock


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> list[str]:
    """Names of the rows that are measured; every row takes 10 seconds."""
    names: list[str] = []

    def rnr(row: Row, sizes: Sizes) -> dict[str, Any]:
        names.append(row.name)
        now[0] += 10
        return {"seconds_each": 0.5, "updates_each": 2.0, "images": 2048}

    monkeypatch.setitem(MEASURES, "rnr", rnr)
    return names


def rows_of(folder: Path) -> Any:
    return json.loads((folder / JSON_FILE).read_text())["rows"]


def test_rows_have_unique_names_and_cover_the_grid() -> None:
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows)
    grid = [row for row in rows if row.kind in ("update", "stack")]
    assert len(grid) == 3 * 3 * 3 * 3  # agents, precisions, modes, stacks of 1, 4 and 16
    assert rows.index(Row("runs", "vit-tiny", "bfloat16")) < len(rows) - 1, "slow rows come after the training runs"


def test_a_second_call_measures_the_rows_that_are_missing(measured: list[str], tmp_path: Path) -> None:
    measure_gpu(tmp_path, SIZES, 15 / 60, tmp_path, "rnr")  # 15 seconds: the second row would end after 20
    assert len(measured) == 1 and len(rows_of(tmp_path)) == 1
    assert "## Missing\n\n- `rnr vit-small float32 eager`" in (tmp_path / MARKDOWN_FILE).read_text()
    report = measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr")
    assert measured == [row.name for row in all_rows() if row.kind == "rnr"] == [*rows_of(tmp_path)]
    assert [record["session"] for record in report.records.values()] == [0, 1, 1]
    assert "Missing" not in (tmp_path / MARKDOWN_FILE).read_text()


def test_files_are_complete_after_every_row(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(MEASURES, "logits", lambda row, sizes: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        measure_gpu(tmp_path, SIZES, 1, tmp_path, "vit-nano float32 eager", lambda line: None)
    assert rows_of(tmp_path)[Row("rnr", "vit-nano").name]["seconds_each"] == 0.5
    assert "| vit-nano float32 eager | 500.0 | 2.0 | 2,048 |" in (tmp_path / MARKDOWN_FILE).read_text()


def test_an_error_is_recorded_and_repeated_last(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def out_of_memory(row: Row, sizes: Sizes) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    working = MEASURES["rnr"]
    monkeypatch.setitem(MEASURES, "rnr", out_of_memory)
    measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr vit-tiny")
    assert rows_of(tmp_path)[ROW.name]["status"] == "failed"
    text = (tmp_path / MARKDOWN_FILE).read_text()
    assert f"- `{ROW.name}`: OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB" in text
    monkeypatch.setitem(MEASURES, "rnr", working)
    measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr")
    assert measured[-1] == ROW.name and len(measured) == 3
    assert {record["status"] for record in rows_of(tmp_path).values()} == {"measured"}


def test_what_is_not_supported_is_listed_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, now: list[float], tmp_path: Path
) -> None:
    def unsupported(row: Row, sizes: Sizes) -> dict[str, Any]:
        raise NotSupported("there is no such thing")

    monkeypatch.setitem(MEASURES, "rnr", unsupported)
    report = measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr")
    assert all(report.is_done(row.name) for row in all_rows() if row.kind == "rnr")
    assert f"- `{ROW.name}`: there is no such thing" in (tmp_path / MARKDOWN_FILE).read_text()


def test_folders_of_other_measurements_are_refused(measured: list[str], tmp_path: Path) -> None:
    measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr")
    with pytest.raises(UserError, match="holds a rehearsal; name another --out"):
        measure_gpu(tmp_path, Sizes(device="cpu"), 1, tmp_path, "rnr")
    for text in ("{", "[]", '{"format": 1}', '{"format": 2}'):
        (tmp_path / JSON_FILE).write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr")
        assert (tmp_path / JSON_FILE).read_text() == text
    with pytest.raises(UserError, match="no row has this in its name"):
        measure_gpu(tmp_path, SIZES, 1, tmp_path, "rnr vit-huge")


def test_training_runs_take_the_fastest_mode_and_keep_it(
    monkeypatch: pytest.MonkeyPatch, now: list[float], tmp_path: Path
) -> None:
    seconds = {"no": 3.0, "default": 1.0, "reduce-overhead": 2.0}
    modes: list[str] = []

    def update(row: Row, sizes: Sizes) -> dict[str, Any]:
        middle = seconds[str(sizes.agent_options(row)["compile"])]
        values = {"plastibench": [middle] * 3, "batch_size": 256, "flops": 1, "ratio": None, "reached": None}
        return values

    def train(row: Row, sizes: Sizes, folder: Path, data_dir: Path, deadline: float) -> dict[str, Any]:
        modes.append(row.mode)
        assert deadline == 585.0  # ten minutes without the time to checkpoint
        methods = {name: {"state": "interrupted", "progress": 0.5} for name in gpu_runs.METHODS}
        return {"complete": len(modes) > 1, "methods": methods, "seconds": 1.0}

    monkeypatch.setattr(gpu_session, "all_rows", lambda: [row for row in all_rows() if row.kind in ("update", "runs")])
    monkeypatch.setitem(MEASURES, "update", update)
    monkeypatch.setattr(gpu_session, "train", train)
    measure_gpu(tmp_path, SIZES, 10, tmp_path, "vit-tiny bfloat16")
    text = (tmp_path / MARKDOWN_FILE).read_text()
    assert "none 50 % done, reset 50 % done, rnr 50 % done" in text and "stopped when the time was over" in text
    seconds["default"] = 9.0
    report = measure_gpu(tmp_path, SIZES, 10, tmp_path, "runs")
    assert modes == ["compiled", "compiled"] and report.is_done("runs vit-tiny bfloat16 eager")


@pytest.mark.parametrize(
    "name", ["update vit-nano bfloat16 eager", "logits vit-nano float32 eager", "stack vit-tiny bfloat16 eager stack 4"]
)
def test_a_rehearsal_on_a_cpu(name: str, tmp_path: Path) -> None:
    """Devices are equal, so the logits are, too."""
    (row,) = (row for row in all_rows() if row.name == name)
    measure_gpu(tmp_path, SIZES, 8, tmp_path, row.name)
    record = rows_of(tmp_path)[row.name]
    assert record["status"] == "measured", record
    if row.kind == "logits":
        assert record["largest_difference"] == 0 and record["equal_units"] == 1 and record["standard_deviation"] > 0
    else:
        assert record["plastibench"][1] > 0


@pytest.mark.slow
def test_a_rehearsal_of_all_rows(say: Callable[..., Any], tmp_path: Path) -> None:
    words = f"bench gpu --rehearse --device cpu --updates 2 --rounds 2 --minutes 60 --out {tmp_path / 'out'}"
    with torch.compiler.set_stance("force_eager"):  # a compiler would take minutes
        said = say(*words.split())
    assert said.status == 0, said.err
    rows = rows_of(tmp_path / "out")
    assert [*rows] == [row.name for row in all_rows()]
    wrong = {name: record["reason"] for name, record in rows.items() if record["status"] in ("failed", "incomplete")}
    assert not wrong
    assert {name.split()[0] for name, record in rows.items() if record["status"] == "not supported"} == {
        "sync",
        "stack",
    }
    (runs,) = (record for name, record in rows.items() if name.startswith("runs"))
    assert set(runs["methods"]) == set(gpu_runs.METHODS)
    assert all(0 <= values["accuracy"] <= 1 for values in runs["methods"].values())
