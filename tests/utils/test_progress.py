from __future__ import annotations

import io

import pytest
from rich.console import Console

from plastibench.utils.progress import PIPE, Progress, _TerminalLine, duration, parse_pipe_line


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
    assert "left" not in lines[0] and lines[1].endswith("16 s left") and lines[2].endswith("14 s left")


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("x", 100, quiet=True)
    progress.show(10, 10, "task 1/10", "accuracy 50 %", milestone=True)
    progress.close()
    assert capsys.readouterr().err == ""


def test_the_time_left_includes_the_runs_that_follow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("plastibench.utils.progress.time.monotonic", lambda: now[0])
    progress = Progress("x", 100, runs_after=2)
    for done in (0, 50):
        progress.show(done, done, "", "", milestone=True)
        now[0] += 50.0
    # 50 of 100 updates took 50 seconds: 50 are left in this run, and 100 in each of the next two
    assert capsys.readouterr().err.splitlines()[-1].endswith("4 min left for 3 runs")


def test_progress_is_not_cut_in_a_narrow_terminal() -> None:
    screen = io.StringIO()
    line = _TerminalLine(Console(file=screen, force_terminal=True, width=40))
    text = "rnr seed 0  task 3/10, epoch 20/100  accuracy  87.1 %  12,345 samples/s  83 min left"
    line.update(text, 0.5)
    line.stop()
    assert all(word in screen.getvalue() for word in text.split()) and "…" not in screen.getvalue()


def test_progress_through_a_pipe_arrives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(PIPE, "1")
    progress = Progress("x", 100, run="cl-digits_x")
    for done in range(0, 100, 25):
        progress.show(done, done, "task 1/1", "accuracy 50 %")
    progress.close()
    print("an error")
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 2, "lines must be few"
    parsed = parse_pipe_line(lines[0] + "\n")
    assert parsed is not None and parsed.fraction == 0.0 and parsed.run == "cl-digits_x"
    assert "task 1/1  accuracy 50 %" in parsed.text
    assert parse_pipe_line("an error\n") is None and parse_pipe_line("") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3599, "1 h 0 min"), (46 * 60 + 6, "46 min"), (12_000, "3 h 20 min")],
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
