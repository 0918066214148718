"""The real libraries, offline: what they have stored is what the run has recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.short_names import own_name
from plastibench.config.spec import RunSpec, read_toml
from plastibench.results import metrics_csv
from plastibench.results.run_folder import read_spec
from plastibench.training.trackers.tracking import STATE_FILE
from tests.support import trackers
from tests.support.runs import Stopped, assert_same_run, crash_at, go

Tiny = Callable[..., RunSpec]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def interrupted(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A function that tracks a run which crashes and resumes; it returns the run's folder and its result."""
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)

    def track(name: str) -> tuple[Path, dict[str, Any]]:
        spec = tiny("rnr", {"quantile": 0.25}, agent_options={"batch_size": 8}, seed=1)
        go(spec, tmp_path / "without")
        crash_at(monkeypatch, 5)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "with", checkpoint_seconds=0.0, log=name)
        result = go(spec, tmp_path / "with", log=name)
        assert_same_run(tmp_path / "without" / spec.id, tmp_path / "with" / spec.id)
        return tmp_path / "with" / spec.id, result

    return track


def expected(folder: Path, result: dict[str, Any]) -> tuple[trackers.Points, list[list[Any]]]:
    """The charts and the table that a tracker must show, from ``metrics.csv`` and ``result.json``."""
    points: trackers.Points = {}
    for row in metrics_csv.read(folder / metrics_csv.NAME):
        points.setdefault(metrics_csv.chart_name(row.metric, row.phase), []).append((row.update, row.value))
    final = {
        f"{group}/{name}": value
        for group, key in (("result", "summary"), ("cost", "cost"))
        for name, value in result[key].items()
    }
    return {**points, **{name: [(result["cost"]["updates"], value)] for name, value in final.items()}}, [
        [name, value] for name, value in final.items()
    ]


def without_position(points: trackers.Points) -> trackers.Points:
    """The charts other than the position of each step; times differ between the two processes of the run."""
    assert {"task", "epoch"} <= set(points)
    return {name: values for name, values in points.items() if name not in ("task", "epoch")}


@pytest.mark.slow
def test_wandb(interrupted: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder, result = interrupted("wandb")
    points, steps = trackers.wandb_points(tmp_path)
    wanted, table = expected(folder, result)
    assert without_position(points) == wanted
    assert steps == sorted(set(steps)), "wandb keeps one value per step, also of a resumed run"
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    records = [record for run in runs for record in trackers.wandb_records(run)]
    started = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in started} == {read_toml(folder / STATE_FILE)["wandb"]["id"]}
    first = started[0]
    assert (first.project, first.display_name) == ("plastibench", f"{own_name(read_spec(folder / 'spec.toml'))}·s1")
    assert list(first.tags) == ["cl-digits", "vit-nano", "rnr", "seed 1"]
    updates = [update for record in records for update in record.config.update]
    config = {update.key: json.loads(update.value_json) for update in updates if update.key}
    assert config["intervention"]["quantile"] == 0.25
    assert config["run"]["seed"] == 1
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/result_*.json")
    assert json.loads(stored.read_text())["data"] == table


def test_trackio(interrupted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):  # the environment variable was read at import
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    folder, result = interrupted("trackio")
    run_id = read_toml(folder / STATE_FILE)["trackio"]["id"]
    wanted, table = expected(folder, result)
    assert without_position(trackers.trackio_points("plastibench", run_id)) == wanted
    assert len(sqlite_storage.SQLiteStorage.get_run_records("plastibench")) == 1
    config = sqlite_storage.SQLiteStorage.get_run_config("plastibench", "", run_id=run_id)
    assert config["intervention"]["quantile"] == 0.25
    assert config["_Group"].startswith("cl-digits·vit-nano·rnr·")
    last = sqlite_storage.SQLiteStorage.get_logs("plastibench", run_id=run_id)[-1]
    assert [[row["metric"], row["value"]] for row in last["result"]["_value"]] == table


@pytest.mark.slow
def test_mlflow(interrupted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder, result = interrupted("mlflow")
    client = mlflow.MlflowClient()
    run_id = read_toml(folder / STATE_FILE)["mlflow"]["id"]
    wanted, table = expected(folder, result)
    assert without_position(trackers.mlflow_points(client, run_id)) == wanted
    (run,) = client.search_runs([client.get_experiment_by_name("plastibench").experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert run.data.params["intervention.quantile"] == "0.25"
    assert run.data.tags["intervention"] == "rnr" and run.data.tags["seed"] == "1"
    stored = json.loads(
        Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="result.json")).read_text()
    )
    assert stored["data"] == table


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_runs_in_parallel_processes_are_tracked(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    command = f"run relabel-digits --agent mlp --env.tasks 2 --env.epochs 2 --seed 0..2 --jobs 3 --no-plot --log {name}"
    done = subprocess.run(
        [sys.executable, "-m", "plastibench", *command.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    states = [read_toml(path)[name] for path in (tmp_path / "runs").glob(f"*/{STATE_FILE}")]
    assert len(states) == len({state["id"] for state in states}) == 3, done.stderr
    assert all(state["finished"] for state in states)
