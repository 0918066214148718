from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from plastibench.config.spec import RunSpec
from plastibench.results.hparams import GROUP, hyperparameters, metric_values
from plastibench.results.result import Result
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
    ends = [pytest.approx(100 * task.end) for task in result.tasks]
    assert found["leaderboard/final %"] == [(2, ends[0]), (4, ends[1]), (6, ends[2])]
    assert ends[2] == 100 * result.summary.final_accuracy
    assert found["leaderboard/AUC %"] == [(6, pytest.approx(100 * result.summary.auc))]
    assert found["leaderboard/updates"] == [(6, 6)]
    assert not any("return" in tag for tag in found)


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
    folder, result = finished
    plugin = read(folder).PluginTagToContent("hparams")
    assert set(plugin) == {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}  # the board has the columns
    parsed = {tag: plugin_data_pb2.HParamsPluginData.FromString(value) for tag, value in plugin.items()}
    start = parsed[metadata.SESSION_START_INFO_TAG].session_start_info
    assert start.group_name == f"rnr·q=0.25·s2·{result.id.rpartition('_')[2][:8]}"
    values = {name: value.string_value for name, value in start.hparams.items()}
    assert values == {**hyperparameters(result), "version": "1", "data": result.data_digest}
    assert (values["env"], values["intervention"], values["quantile"], values["seed"]) == (
        "cl-digits",
        "rnr",
        "0.25",
        "2",
    )
    assert {f"{GROUP}/{name}" for name in metric_values(result.summary, result.cost)} <= set(
        read(folder).Tags()["scalars"]
    )
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


@pytest.mark.sample(2)
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
