"""Run specs to the end, crash and compare runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.agents.classifier import Classifier
from plastibench.config.spec import RunSpec
from plastibench.training.runner import run

STATEFUL = {  # run options with all the state that an exact resume must restore
    "agent_options": {"dropout": 0.2, "batch_size": 8, "lr": 0.01},
    "env_options": {"augment": "crop-flip"},
    "representative": 6,  # fewer samples than there are, so that they are drawn
}


class Stopped(BaseException):
    """A simulated crash; no handler for ordinary exceptions catches it."""


def go(spec: RunSpec, runs_dir: Path, **options: Any) -> dict[str, Any]:
    """Run to the end; return the result as parsed JSON."""
    return json.loads(json.dumps(run(spec, runs_dir=runs_dir, quiet=True, threads=1, **options).to_dict()))


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times and origin, which differ between runs of the same spec."""
    kept = {**result, "cost": {k: v for k, v in result["cost"].items() if "seconds" not in k}, "origin": None}
    kept.pop("sha256", None)  # covers the times
    kept["interventions"] = [{**report, "seconds": None} for report in result["interventions"]]
    return kept


def timeless_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` without times."""
    return [row for row in table(folder) if not row["metric"].endswith("seconds")]


def weights(folder: Path) -> bytes:
    """The final weights of a run."""
    state = torch.load(folder / "final.pt", weights_only=True)
    return b"".join(value.numpy().tobytes() for network in state["networks"] for value in network.values())


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two run folders have the same result, metrics and weights, bit for bit."""
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert timeless(results[0]) == timeless(results[1])
    assert timeless_rows(one) == timeless_rows(other)
    assert weights(one) == weights(other)


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its start."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int, owner: type = Classifier, name: str = "update") -> None:
    """Let a call of a method, counted from 1, raise :class:`Stopped`; by default an update of the agent."""
    calls = [0]
    original = getattr(owner, name)

    def counted(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            monkeypatch.setattr(owner, name, original)
            raise Stopped
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, counted)


def watch_updates(monkeypatch: pytest.MonkeyPatch, note: Callable[[Classifier, Any], None]) -> None:
    """Call ``note(agent, batch)`` before every update."""
    original = Classifier.update

    def watched(self: Classifier, batch: Any) -> None:
        note(self, batch)
        original(self, batch)

    monkeypatch.setattr(Classifier, "update", watched)
