from __future__ import annotations

import pytest

from plastibench.config.spec import RunSpec
from plastibench.sweeps import capacity

GIB = 2**30


@pytest.mark.parametrize(
    ("runs", "threads", "memory_each", "expected"),
    [
        (20, 0, 0, 8),  # a run per core
        (3, 0, 0, 3),  # no more than there are runs
        (20, 4, 0, 2),  # each run takes four cores
        (20, 16, 0, 1),
        (20, 0, 2 * GIB, 4),  # 80 % of 10 GiB hold four
        (20, 0, 100 * GIB, 1),
    ],
)
def test_slots_are_limited_by_runs_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, runs: int, threads: int, memory_each: int, expected: int
) -> None:
    monkeypatch.setattr(capacity, "cores", lambda: 8)
    monkeypatch.setattr(capacity, "available_memory", lambda: 10 * GIB)
    specs = [RunSpec.make("cl-digits", "mlp", device="cpu")] * runs
    assert capacity.choose_slots(specs, threads, memory_each) == expected


def test_a_gpu_runs_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [RunSpec.make("cl-digits", "mlp", device="cuda")] * 20
    for count, expected in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(capacity, "gpu_count", lambda count=count: count)
        assert capacity.choose_slots(specs) == expected
