from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from plastibench.config.spec import RunSpec
from plastibench.results.result import Cost, Result, Summary
from plastibench.training.recorder import LEADERBOARD, leaderboard_values
from plastibench.training.runner import run
from tests.support.runs import Stopped, crash_at, go
from tests.support.tensorboard import content, read

Tiny = Callable[..., RunSpec]


@pytest.fixture
def finished(tiny: Tiny, tmp_path: Path) -> tuple[Path, Result]:
    spec = tiny("rnr", {"quantile": 0.25}, seed=2)
    result = run(spec, runs_dir=tmp_path, quiet=True, threads=1)
    return tmp_path / spec.id, result


def test_curves_histograms_plasticity_and_leaderboard_are_recorded(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    found = content(folder)
    curve = [accuracy for task in result.tasks for _, accuracy in task.curve]
    assert [value for _, value in found["accuracy"]] == pytest.approx(curve)
    assert [step for step, _ in found["accuracy"]] == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert {"loss", "gradient-norm", "drop/after", "output-kl/after", "train-accuracy/end"} <= set(found)
    for name in ("dormant-ratio", "effective-rank", "weight-distance", "layernorm-gradient-spread"):
        expected = [measured.metrics[name] for measured in result.plasticity if measured.phase == "end"]
        assert [value for _, value in found[f"plasticity-classifier/{name}/end"]] == pytest.approx(expected)
    assert [step for step, _ in found["layernorm-gradient-end/norm"]] == [2, 4, 6]
    assert [step for step, _ in found["layernorm-gradient-after/blocks.0.norm2"]] == [0, 2, 4]
    assert found["layernorm-gradient-end/norm"][0][1].num == 16  # one value per feature
    ends = [pytest.approx(task.end) for task in result.tasks]
    assert found["leaderboard/final"] == [(2, ends[0]), (4, ends[1]), (6, ends[2])]
    assert ends[2] == result.summary.final_accuracy
    assert found["leaderboard/auc"] == [(6, pytest.approx(result.summary.auc))]
    assert found["leaderboard/updates"] == [(6, 6)]


def test_metrics_csv_agrees_with_tensorboard(finished: tuple[Path, Result]) -> None:
    import csv

    folder, _ = finished
    found, table = content(folder), {}
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            tag = row["metric"] if row["phase"] in ("training", "evaluation") else f"{row['metric']}/{row['phase']}"
            table.setdefault(tag, []).append((int(row["update"]), pytest.approx(float(row["value"]), rel=1e-6)))
    compared = [tag for tag in table if "seconds" not in tag]
    assert len(compared) > 50
    for tag in compared:
        assert found[tag] == table[tag], tag


def test_hyperparameters_of_a_session(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    plugin = read(folder).PluginTagToContent("hparams")
    assert {metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG} <= set(plugin)
    parsed = {tag: plugin_data_pb2.HParamsPluginData.FromString(value) for tag, value in plugin.items()}
    start = parsed[metadata.SESSION_START_INFO_TAG].session_start_info.hparams
    assert start["env"].string_value == "cl-digits" and start["intervention"].string_value == "rnr"
    assert start["seed"].number_value == 2 and "quantile=0.25" in start["options"].string_value
    columns = parsed[metadata.EXPERIMENT_TAG].experiment
    assert [info.name.tag for info in columns.metric_infos] == [f"leaderboard/{name}" for name in LEADERBOARD]
    assert [info.name for info in columns.hparam_infos if info.differs] == [
        *("env", "agent", "intervention", "options", "seed")
    ]
    scalars = read(folder).Tags()["scalars"]
    assert {info.name.tag for info in columns.metric_infos} <= {*scalars, "leaderboard/recovery"}
    assert parsed[metadata.SESSION_END_INFO_TAG].session_end_info.status == 1  # STATUS_SUCCESS


def test_run_is_a_single_tensorboard_run_with_its_spec(
    finished: tuple[Path, Result],
) -> None:
    folder, _ = finished
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    events = read(folder)
    (text,) = [event for tag in events.Tags()["tensors"] if tag.startswith("spec") for event in events.Tensors(tag)]
    assert b'name = "rnr"' in text.tensor_proto.string_val[0]


def test_hyperparameters_have_the_same_types_in_all_runs(tiny: Tiny, tmp_path: Path) -> None:
    found = []
    for spec in (tiny("none"), tiny("reset", every=4, agent="mlp"), tiny(env="relabel-digits", agent="mlp")):
        run(spec, runs_dir=tmp_path, quiet=True, threads=1)
        value = read(tmp_path / spec.id).PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
        hparams = plugin_data_pb2.HParamsPluginData.FromString(value).session_start_info.hparams
        found.append({name: item.WhichOneof("kind") for name, item in hparams.items()})
    assert found[0] == found[1] == found[2]
    assert {"seed", "every", "version", "data", "env options", "agent options"} <= set(found[0])


def test_leaderboard_values_of_accuracy_and_return_runs() -> None:
    cost = Cost(seconds=20.0, intervention_seconds=1.0, updates=7)
    summary = Summary(final_accuracy=0.9, mean_drop=0.1, auc=0.5, mean_recovery_epochs=3.0, unrecovered_fraction=0.0)
    row = leaderboard_values(summary, cost)
    assert list(row) == list(LEADERBOARD)
    assert row == {"final": 0.9, "drop": 0.1, "auc": 0.5, "recovery": 3.0, "cost": 0.05, "unrecovered": 0} | {
        "seconds": 20.0,
        "updates": 7,
    }
    summary = Summary(final_return=9.0, average_return=5.0, mean_drop=1.0, unrecovered_fraction=1.0)
    row = leaderboard_values(summary, cost)
    assert [row[name] for name in ("final", "drop", "auc", "recovery", "unrecovered")] == [9.0, 1.0, 5.0, None, 1.0]


@pytest.mark.parametrize(
    ("updates", "checkpoint_seconds", "clock"),
    [(3, 0.0, 0), (4, 0.0, 0), (5, 0.0, 0), (4, 0.0, -86_400), (4, 1e9, 0), (5, 1e9, 0)],
    ids=lambda value: str(value),
)
def test_resumed_run_has_every_point_exactly_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int, checkpoint_seconds: float, clock: int
) -> None:
    spec = tiny("rnr", agent_options={"batch_size": 8})
    go(spec, tmp_path / "uninterrupted")
    crash_at(monkeypatch, updates + 1)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "resumed", checkpoint_seconds=checkpoint_seconds)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + clock * 10**9)
    go(spec, tmp_path / "resumed")
    uninterrupted, resumed = content(tmp_path / "uninterrupted" / spec.id), content(tmp_path / "resumed" / spec.id)
    assert uninterrupted.keys() == resumed.keys()
    steps = {tag: [step for step, _ in events] for tag, events in resumed.items()}
    assert {tag: steps[tag] for tag in ("accuracy", "loss", "drop/after")} == {
        tag: [step for step, _ in uninterrupted[tag]] for tag in ("accuracy", "loss", "drop/after")
    }
    assert resumed == uninterrupted
    assert json.loads((tmp_path / "resumed" / spec.id / "result.json").read_text())["id"] == spec.id
