"""Before the first run, the process server starts early, and a terminal shows what the command waits for."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pytest

from plastibench.cli import run as run_command
from plastibench.cli.parallel import start_importing
from plastibench.cli.waiting import waiting
from plastibench.config.errors import UserError
from plastibench.sweeps import grid, run_server

LABELS = ["cl-digits_mlp_none_s0", "cl-digits_mlp_rnr_s0"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts of the server and imports of classes, in order; the import ends the command."""
    found: list[str] = []

    def imports(*_: Any, **__: Any) -> Any:
        found.append("import")
        raise UserError("enough")

    monkeypatch.setattr(run_server, "start_server", lambda: found.append("server"))
    monkeypatch.setattr(run_command, "make_specs", imports)
    monkeypatch.setattr(grid.RunSpec, "make", imports)
    return found


RUN = ["run", "relabel-digits", "--agent", "mlp", "--jobs", "2", "--intervention", "none,reset"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (RUN, ["server", "import"]),
        ([*RUN[:-1], "reset"], ["import"]),
        ([*RUN, "--jobs", "1"], ["import"]),
        ([*RUN, "--dry-run"], ["import"]),
        ([*RUN, "--device", "cuda"], ["import"]),
        (["sweep", "fig2", "--jobs", "2"], ["server", "import"]),
        (["sweep", "fig2", "--jobs", "2", "--list"], ["import"]),
    ],
)
def test_the_server_starts_before_the_command_imports(
    events: list[str], say: Any, tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    said = say(*words, "--runs-dir", tmp_path)
    assert said.status == 2 and events == expected


@pytest.mark.parametrize(("complete", "force", "expected"), [(1, False, 1), (2, False, 0), (2, True, 1)])
def test_the_server_is_not_started_if_all_runs_may_be_complete(
    events: list[str], tmp_path: Path, complete: int, force: bool, expected: int
) -> None:
    for label in LABELS[:complete]:
        (tmp_path / f"{label}_0123456789abcdef").mkdir()
        (tmp_path / f"{label}_0123456789abcdef" / "result.json").write_text("{}")
    start_importing(argparse.Namespace(engine="local", jobs=2, force=force, runs_dir=tmp_path), LABELS)
    assert events == ["server"] * expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_shows_what_the_command_waits_for(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("importing PyTorch", quiet):
        pass
    assert ("importing PyTorch" in terminal.getvalue()) != quiet


def test_a_pipe_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("importing PyTorch"):
        pass
    assert capsys.readouterr().err == ""
