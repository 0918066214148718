from __future__ import annotations

from pathlib import Path

import pytest

from plastibench.utils import machine


def test_the_limits_of_a_container_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    memory = machine.available_memory()
    assert machine.cores() == 16 and memory and memory > 0
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cores() == 16
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert machine.cores() == 2 and machine.available_memory() == 600_000


def test_sizes_are_readable() -> None:
    assert [machine.format_bytes(size) for size in (0, 999, 1_000, 1_234_567, 5e9, 4e15)] == [
        "0 B", "999 B", "1 kB", "1.23 MB", "5 GB", "4e+03 TB",
    ]  # fmt: skip
