"""Plugins with mistakes are refused in one line that names the file, or their runs are recorded as failed."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plastibench.config import registry
from plastibench.results.files import read_result
from plastibench.training.failure import FAILURE_FILE
from tests.support.attack import Attack
from tests.support.plugins import write_plugin

BUDGET = ["--env.tasks", "2", "--env.epochs", "1", "--env.train-size", "24", "--device", "cpu", "--quiet", "--no-plot"]
COMMANDS = (["list"], ["list", "interventions"], ["--help"], ["--dry-run"], [], [], [], [])


@contextmanager
def fresh_process() -> Iterator[None]:
    """Forget what a plugin registered and imported."""
    modules = dict(sys.modules)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for known in (registry.envs, registry.agents, registry.interventions):
            patch.setattr(known, "_entries", dict(known.all()))
        yield
    for name in [name for name, module in sys.modules.items() if modules.get(name) is not module]:
        if name in modules:
            sys.modules[name] = modules[name]
        elif not name.startswith(("plastibench.", "torch")):  # libraries that were imported late stay
            del sys.modules[name]


def check_runs(runs_dir: Path) -> str:
    """Each run is complete or recorded as failed; return what it is."""
    states = set()
    for folder in runs_dir.iterdir() if runs_dir.is_dir() else ():
        if not folder.is_dir() or not (folder / "spec.toml").exists():
            continue
        assert not list(folder.glob("*.tmp")), folder
        if (folder / "result.json").exists():
            read_result(folder / "result.json")
            states.add("complete")
        else:
            assert (folder / FAILURE_FILE).is_file(), sorted(path.name for path in folder.iterdir())
            states.add("recorded as failed")
    assert len(states) <= 1, states
    return "".join(states)


def test_plugins(attack: Attack, tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, dice in enumerate(attack.trials(40)):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        path, wrong, kind = write_plugin(folder, dice)
        words = list(dice.choice(COMMANDS))
        if words[:1] != ["list"]:
            agent, method = ("mine", "none") if kind == "agent" else ("mlp", "mine")
            words = ["run", "relabel-digits", "--agent", agent, "--intervention", method, *BUDGET, *words]
        with fresh_process():
            said = say(*words, f"--plugin={path.name}")
        case = (number, wrong, words[:1], said)
        assert said.status in (0, 1, 2), case
        assert "Traceback" not in said.err, case
        assert said.err.count("\n") == 1 if said.status else said.err.count("\n") <= 1, case
        state = check_runs(folder / "runs")
        if said.status:
            assert said.err.startswith("plastibench: "), case
            assert path.name in said.err or "unknown" in said.err, case
            assert state != "complete", case
        elif words[0] == "run" and "--help" not in words and "--dry-run" not in words:
            assert state == "complete", case
        attack.note(state or ("accepted" if said.status == 0 else "refused"))
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
