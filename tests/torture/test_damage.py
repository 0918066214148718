"""Files that were damaged are noticed, or change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.datasets import load_dataset
from plastibench.results.files import read_result
from plastibench.training.saved_run import open_run
from plastibench.utils import tensorboard_events
from tests.support.attack import Attack
from tests.support.mutations import harmed
from tests.support.runs import STATEFUL, Stopped, assert_same_run, crash_at, go
from tests.support.tensorboard import content

Tiny = Callable[..., RunSpec]


@pytest.fixture
def spec(tiny: Tiny) -> RunSpec:
    return tiny("rnr", **STATEFUL)


def interrupt(spec: RunSpec, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, update: int) -> Path:
    """The folder of a run that crashed before an update."""
    with monkeypatch.context() as patch:
        crash_at(patch, update)
        with pytest.raises(Stopped):
            go(spec, runs_dir, checkpoint_seconds=0)
    return runs_dir / spec.id


def harm_one(folder: Path, dice: Random, names: str = "*") -> tuple[Path, str]:
    """Damage or delete a file; return it and what was done."""
    path = dice.choice(sorted(path for path in folder.glob(names) if path.is_file() and path.name != "lock"))
    if dice.random() < 0.05:
        path.unlink()
        return path, "deleted"
    made, kind = harmed(path.read_bytes(), dice)
    path.write_bytes(made)
    return path, kind


def test_damaged_files_of_unfinished_runs(
    attack: Attack, spec: RunSpec, tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(spec, tmp_path / "whole")
    saved = interrupt(spec, tmp_path / "saved", monkeypatch, 5)
    assert len(list(saved.glob("checkpoint*.pt"))) == 2
    for number, dice in enumerate(attack.trials(4)):
        runs = tmp_path / f"runs{number}"
        shutil.copytree(saved.parent, runs)
        path, kind = harm_one(runs / spec.id, dice)
        said = say("resume", spec.id, "--runs-dir", runs, "--quiet", "--threads", "1", "--for-command", "x")
        assert said.err.count("\n") == (1 if said.status else said.err.count("\n")) <= 1, (path.name, kind, said.err)
        assert said.status in (0, 2), (path.name, kind, said.err)
        if said.status == 0:
            assert_same_run(tmp_path / "whole" / spec.id, runs / spec.id)
        attack.note("refused" if said.status else "went back to the previous checkpoint" if said.err else "harmless")
        shutil.rmtree(runs)


def test_damaged_files_of_complete_runs(attack: Attack, spec: RunSpec, tmp_path: Path) -> None:
    go(spec, tmp_path / "whole")
    whole = tmp_path / "whole" / spec.id
    result, state = read_result(whole / "result.json").to_dict(), weights_of(whole)
    for number, dice in enumerate(attack.trials(30)):
        folder = tmp_path / f"runs{number}"
        shutil.copytree(whole, folder)
        path, kind = harm_one(folder, dice, dice.choice(["result.json", "final.pt", "spec.toml"]))
        problem = ""
        try:
            assert read_result(folder / "result.json").to_dict() == result, (path.name, kind)
            assert weights_of(folder) == state, (path.name, kind)
        except UserError as error:
            problem = str(error)
        assert "\n" not in problem, problem
        attack.note("noticed" if problem else "harmless")
        shutil.rmtree(folder)


def weights_of(folder: Path) -> tuple[RunSpec, list[bytes]]:
    saved = open_run(folder, "cpu", Path("data"))
    values = saved.agent.networks["classifier"].module.state_dict().values()
    return saved.spec, [value.numpy().tobytes() for value in values]


def test_damaged_caches_of_datasets(attack: Attack, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train/cat/1", "train/cat/2", "train/dog/1", "test/cat/1", "test/dog/1"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    first = load_dataset("imagefolder", tmp_path / "data", path=tmp_path / "images", image_size=8)
    (entry,) = (tmp_path / "data" / ".plastibench-cache").iterdir()
    for dice in attack.trials(20):
        harm_one(entry, dice)
        again = load_dataset("imagefolder", tmp_path / "data", path=tmp_path / "images", image_size=8)
        assert again.digest == first.digest
        assert (again.mean, again.std, again.classes) == (first.mean, first.std, first.classes)
        attack.note("rebuilt or harmless")


def test_clocks_that_were_set(attack: Attack, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(spec, tmp_path / "whole")
    for number, dice in enumerate(attack.trials(1)):
        runs = tmp_path / f"runs{number}"
        for _ in range(dice.choice([1, 2, 3])):
            interrupt(spec, runs, monkeypatch, dice.randint(2, 3))
            now = dice.randint(10**9, 2 * 10**9) * 10**9
            monkeypatch.setattr(tensorboard_events.time, "time_ns", lambda now=now: now)
        go(spec, runs)
        monkeypatch.undo()
        assert_same_run(tmp_path / "whole" / spec.id, runs / spec.id)
        assert content(tmp_path / "whole" / spec.id) == content(runs / spec.id)
        json.loads((runs / spec.id / "result.json").read_text(), parse_constant=pytest.fail)
        attack.note("same curves")
        shutil.rmtree(runs)
