"""Mistakes in a user's own method: the command names file, line and what to change, and other runs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plastibench.config.registry import interventions

RUN = ["run", "relabel-digits", "--agent", "mlp", "--agent.width", "8", "--env.tasks", "3", "--env.epochs", "1"]
RUN += ["--env.train-size", "40", "--threads", "1", "--quiet", "--no-plot"]
HEAD = """\
from dataclasses import dataclass

import plastibench as pb


@pb.register_intervention("mine")
@dataclass
class Mine(pb.Intervention):
    {body}
"""
RAISES = "def intervene(self, network, batch):\n        return network.no_such_name"
SINGULAR = "def intervene(self, network, batch):\n        import torch\n        torch.linalg.inv(torch.zeros(2, 2))"
NO_REPORT = "def intervene(self, network, batch):\n        network.module.requires_grad_()"
IDLE = "def intervene(self, network, batch):\n        return pb.Report(parameters=3)"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a method called `mine` to ``mine.py`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interventions, "_entries", dict(interventions.all()))

    def write(body: str, text: str = HEAD) -> None:
        Path("mine.py").write_text(text.format(body=body), encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (RAISES, "mine.py:10: AttributeError in intervene: 'Network' object has no attribute 'no_such_name'"),
        (SINGULAR, "mine.py:11: _LinAlgError in intervene: linalg.inv: The diagonal element 1 is zero"),
        (NO_REPORT, "mine.py:9: Mine.intervene returned None; end it with a Report"),
        (
            "def intervene(self, network, batch):\n        return pb.Report(units=3)",
            "mine.py:9: Mine.intervene returned an invalid Report",
        ),
    ],
)
def test_other_runs_go_on_after_a_failure(say: Any, mine: Any, body: str, words: str) -> None:
    mine(body)
    done = say(*RUN, "--plugin", "mine.py", "--intervention", "mine,none")
    assert done.status == (1 if "Error" in words else 2)
    assert done.err.count("failure.txt") <= 1
    failed, complete = sorted(Path("runs").glob("relabel*"))
    assert failed.name.startswith("relabel-digits_mlp_mine")
    assert any(line.startswith(f"plastibench: {failed.name}: {words}") for line in done.err.splitlines())
    assert "1 of 2 runs failed" in done.err and "none" in done.out
    assert (complete / "result.json").is_file() and not (failed / "result.json").exists()
    text = (failed / "failure.txt").read_text()
    assert words in text.splitlines()[-1] and ("Traceback" in text) == ("Error" in words)
    mine(IDLE)  # other code is another run
    del interventions._entries["mine"]
    done = say(*RUN, "--plugin", "mine.py", "--intervention", "mine,none")
    assert done.status == 0 and len(list(Path("runs").glob("relabel*/result.json"))) == 2
    assert "mine !" in done.out
    assert "! mine: 2 interventions changed nothing in the classifier: the run equals none" in done.out
    board = say("leaderboard").out
    assert "mine: 2 interventions changed nothing" in " ".join(board.split())


@pytest.mark.parametrize(
    ("body", "text", "words"),
    [
        (
            "def intervine(self, network, batch):\n        return pb.Report()",
            HEAD,
            "mine.py:9: plastibench never calls",
        ),
        ("def intervene(self, network):\n        return pb.Report()", HEAD, "mine.py:9: Mine.intervene(self, network)"),
        ("k: float = pb.option(0.5, 'a number')", HEAD.replace("@dataclass\n", ""), "mine.py:6: Mine declares options"),
        ("pass", HEAD, "mine.py:6: Mine overrides no hook"),
        ("", HEAD, "mine.py:9: IndentationError"),
        ("k = undefined", HEAD, "mine.py:9: NameError in Mine: name 'undefined' is not defined"),
    ],
)
def test_a_wrong_class_is_refused_before_any_run(say: Any, mine: Any, body: str, text: str, words: str) -> None:
    mine(body, text)
    done = say(*RUN, "--plugin", "mine.py", "--intervention", "none,mine")
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1
    assert not Path("runs").exists()


def test_an_intervention_that_cannot_act_is_refused_before_any_run(say: Any, tmp_path: Path) -> None:
    done = say(*RUN, "--intervention", "none,reset", "--every", "999", "--runs-dir", tmp_path / "runs")
    assert done.status == 2 and "reset would never act" in done.err and not (tmp_path / "runs").exists()


def test_an_error_in_built_in_code_keeps_its_traceback(
    say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plastibench.interventions.reset import Reset

    monkeypatch.setattr(Reset, "intervene", lambda self, network, batch: self.nowhere)
    monkeypatch.setattr("plastibench.config.own_code._LIBRARIES", (Path(__file__).parent,))
    done = say(*RUN, "--intervention", "reset", "--runs-dir", tmp_path)
    assert done.status == 1 and "AttributeError" in done.err and done.err.count("\n") == 1
    (file,) = tmp_path.glob("*/failure.txt")
    assert "Traceback" in file.read_text() and "attach.py" in file.read_text()
    assert "interventions/attach.py:" in done.err  # the last frame of plastibench
