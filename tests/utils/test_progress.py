from __future__ import annotations

import pytest

from plastibench.utils.progress import Progress, fitting_line


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


def test_a_line_that_is_too_long_loses_its_least_important_parts() -> None:
    parts = ["rnr seed 0", "task 13/20, epoch 117/200", "accuracy  87.1 %", "123,456 samples/s", "1:02:33 left"]
    assert fitting_line(parts, 0) == "  ".join(parts) and len(fitting_line(parts, 0)) > 80
    assert fitting_line(parts, 80) == "  ".join([*parts[:3], parts[4]])
    assert fitting_line(parts, 60) == "  ".join([*parts[:2], parts[4]])
    assert fitting_line(["x", "", "", "5 samples/s", ""], 80) == "x  5 samples/s"
