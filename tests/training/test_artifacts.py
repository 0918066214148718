"""The files of a run, and the content of its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.training.runner import run
from tests.support.runs import go, table

Tiny = Callable[..., RunSpec]


@pytest.mark.parametrize("intervention", ["none", "rnr"])
def test_finished_run_folder_has_all_files_and_no_checkpoint(tiny: Tiny, tmp_path: Path, intervention: str) -> None:
    spec = tiny(intervention)
    result = go(spec, tmp_path, checkpoint_seconds=0)
    folder = tmp_path / spec.id
    assert list(tmp_path.iterdir()) == [folder]
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {"spec.toml", "metrics.csv", "result.json", "final.pt", "lock"}
    assert RunSpec.from_toml((folder / "spec.toml").read_text()) == spec
    written = json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert len(written.pop("sha256")) == 64 and written == result
    module = spec.create("agent").build(spec.create("env").make(), 0, torch.device("cpu")).networks["classifier"].module
    state = torch.load(folder / "final.pt", weights_only=True)
    module.load_state_dict(state["networks"][0])


def test_result_records_the_spec_and_its_origin(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr", {"quantile": 0.25}, seed=4)
    result = go(spec, tmp_path)
    assert (result["id"], result["group"], result["seed"]) == (spec.id, spec.group(), 4)
    assert (result["env"], result["agent"], result["intervention"]) == ("cl-digits", "vit-nano", "rnr")
    assert result["options"] == {part: dict(getattr(spec, part)[1]) for part in ("env", "agent", "intervention")}
    assert result["changed"]["intervention"] == {"quantile": 0.25}
    assert result["origin"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert result["origin"]["hardware"]["device"] == "cpu" and result["origin"]["precision"] == "float32"
    # 4, 8 and 12 samples of 40 in ten chunks; 2 epochs each; batches of 64
    assert [task["samples"] for task in result["tasks"]] == [4, 8, 12]
    assert [task["noise"] for task in result["tasks"]] == [0.5, 0.4, 0.4]
    assert result["cost"]["updates"] == 6 and result["cost"]["samples"] == 2 * (4 + 8 + 12)
    assert len(result["interventions"]) == 2
    assert 0 < result["cost"]["intervention_seconds"] < result["cost"]["seconds"]


def test_result_records_the_given_command(tiny: Tiny, tmp_path: Path) -> None:
    assert go(tiny(), tmp_path, command="plastibench sweep x.toml")["origin"]["command"] == "plastibench sweep x.toml"


def test_metrics_csv_agrees_with_the_result(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr")
    result = go(spec, tmp_path)
    rows = table(tmp_path / spec.id)
    curve = [
        (float(row["epoch"]), float(row["value"]))
        for row in rows
        if (row["metric"], row["phase"], row["task"]) == ("accuracy", "evaluation", "1")
    ]
    assert [list(point) for point in curve] == result["tasks"][1]["curve"]
    assert [epoch for epoch, _ in curve] == [0, 1, 2]
    drops = [float(row["value"]) for row in rows if row["metric"] == "drop"]
    assert drops == [task["drop"] for task in result["tasks"][1:]]
    assert [int(row["update"]) for row in rows] == sorted(int(row["update"]) for row in rows)
    assert not {row["value"] for row in rows} & {"nan", "inf"}


def test_additional_metrics_do_not_change_the_run(tiny: Any, tmp_path: Path) -> None:
    usual = run(tiny("rnr", agent="vit-nano"), runs_dir=tmp_path, quiet=True)
    more = run(tiny("rnr", agent="vit-nano", metrics=("weights", "fau", "gradients")), runs_dir=tmp_path, quiet=True)
    assert more.tasks == usual.tasks and more.id != usual.id
    for plain, rich in zip(usual.plasticity, more.plasticity, strict=True):
        assert {name: rich.metrics[name] for name in plain.metrics} == plain.metrics
        assert {"fau", "weight-cosine", "gradient-cosine"} <= set(rich.metrics)
    first, second, *_ = (record.metrics for record in more.plasticity)
    assert "effective-learning-rate" in second and "effective-learning-rate" not in first
    names = {line.split(",")[4] for line in (tmp_path / more.id / "metrics.csv").read_text().splitlines()}
    assert {"plasticity-classifier/fau", "layers-classifier/blocks.0.mlp.fc1/fau"} <= names


def test_rerunning_a_complete_run_returns_its_result(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny()
    first = go(spec, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / spec.id).iterdir()}
    monkeypatch.setattr(TaskStreamConfig, "make", lambda *_: pytest.fail("the run started again"))
    again = run(spec, runs_dir=tmp_path)
    assert json.loads(json.dumps(again.to_dict())) == first
    assert {path: path.read_bytes() for path in (tmp_path / spec.id).iterdir()} == before
    assert f"{spec.id} is already complete" in capsys.readouterr().err


def test_rerunning_a_complete_run_removes_what_a_killed_process_left(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny()
    go(spec, tmp_path)
    folder = tmp_path / spec.id
    before = {path.name for path in folder.iterdir()}
    for name in ("checkpoint.pt", "checkpoint.previous.pt", ".result.json.0a1b2c3d.tmp", ".final.pt.0a1b2c3d.tmp"):
        (folder / name).touch()
    go(spec, tmp_path)
    assert {path.name for path in folder.iterdir()} == before


def test_run_finished_by_another_process_is_not_repeated(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny()
    original, finished = TaskStreamConfig.make, []

    def make_after_another_run(
        self: TaskStreamConfig, *arguments: Any
    ) -> Any:  # another process finishes the run while this one loads data
        monkeypatch.setattr(TaskStreamConfig, "make", original)
        finished.append(go(spec, tmp_path))
        return original(self, *arguments)

    monkeypatch.setattr(TaskStreamConfig, "make", make_after_another_run)
    assert go(spec, tmp_path) == finished[0]


def test_damaged_result_is_refused_and_kept(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny()
    path = tmp_path / spec.id / "result.json"
    path.parent.mkdir()
    for text in ("", "{", "[]", '{"schema": 99}'):
        path.write_text(text)
        with pytest.raises(UserError, match="result"):
            go(spec, tmp_path)
        assert path.read_text() == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_options": {"patch_size": 3}}, "patch-size 3 does not divide"),
        ({"env_options": {"train_size": 5000}}, "train_size 5000 is not an integer from 1 to"),
        ({"env_options": {"dataset": "digist"}}, "did you mean 'digits'"),
    ],
)
def test_invalid_specs_leave_no_folder(tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        go(tiny(**options), tmp_path / "runs")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
