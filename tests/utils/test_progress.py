from __future__ import annotations

import pytest

from plastibench.utils.progress import Progress


def test_time_left_counts_from_the_first_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("plastibench.utils.progress.time.monotonic", lambda: now[0])
    progress = Progress("x", 100)
    for seconds, done in ((5.0, 10), (7.0, 20), (9.0, 30)):  # 5 s before the first call, then 5 updates per second
        now[0] = seconds
        progress.show(done, done, "", "", milestone=True)
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[0] and lines[1].endswith("0:16 left") and lines[2].endswith("0:14 left")


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("x", 100, quiet=True)
    progress.show(10, 10, "task 1/10", "accuracy 50 %", milestone=True)
    progress.close()
    assert capsys.readouterr().err == ""
