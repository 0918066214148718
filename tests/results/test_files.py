from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plastibench import load_results
from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.results import files
from plastibench.results.files import (
    REFERENCE_FILE,
    compose_result,
    find_results,
    read_result,
    read_result_if_complete,
    write_result,
)
from plastibench.results.result import Result
from tests.leaderboard.made import ORIGIN, acting, result, written
from tests.support.runs import flip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for made in (result("rnr", drop=0.2), acting("reset")):
        write_result(tmp_path, made)
        assert made.folder == tmp_path
        again = read_result(tmp_path / "result.json")
        assert again == made and again.folder == tmp_path
        text = (tmp_path / "result.json").read_text()
        assert text.startswith('{\n "schema": 4,\n "id": ') and text.endswith("\n}\n")


def test_every_reference_file_loads(pytestconfig: pytest.Config) -> None:
    published = find_results(pytestconfig.rootpath / "runs" / "reference")
    assert len(published) > 100
    for path in published:
        content = json.loads(path.read_text(encoding="utf-8"))
        read = read_result(path)
        assert list(read.summary.model_dump(exclude_unset=True).values()) == list(content["summary"].values()) or set(
            read.summary.model_dump(exclude_unset=True).values()
        ) == set(content["summary"].values())
        assert Result.from_dict(json.loads(json.dumps(read.to_dict()))).to_dict() == read.to_dict()
        assert len(read.cost.model_dump(exclude_unset=True)) == len(content["cost"])
        assert len(read.plasticity) == len(content["plasticity"])
        for record, row in zip(read.plasticity, content["plasticity"], strict=True):
            old = row.keys() - {"task", "phase", "place", "role"}  # schemas before 3 have the metrics beside the rest
            assert len(record.metrics) == len(row.get("metrics", old))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"[]", "not a result of plastibench"),
        (b'{"schema": NaN}', "unknown schema nan"),
        (b'{"schema": 99}', "unknown schema 99; update plastibench"),
        (b'{"schema": 3}', "id is missing"),
    ],
)
def test_a_damaged_file_is_reported_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as told:
        read_result(path)
    assert str(told.value).startswith(f"{path}") and "\n" not in str(told.value)
    assert read_result_if_complete(tmp_path) is None


@pytest.mark.parametrize("value", [json.loads("[" * 500 + "]" * 500), 10**400, float("nan"), "\ud800", {"a": 1}])
@pytest.mark.parametrize("key", ["seed", "options", "cost", "tasks", "plasticity", "origin", "env_version"])
def test_a_hostile_value_is_reported(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**result().to_dict(), key: value}))
    with pytest.raises(UserError, match="integer of 401 digits" if value == 10**400 else key):
        read_result(path)


def test_a_file_with_a_huge_number_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = written(tmp_path, [result("none")])
    bad = result("reset", agent_options={"lr": 0.5}).to_dict()
    for number, place in enumerate(("options", "changed")):
        content = json.loads(json.dumps(bad))
        content[place]["agent"]["lr"] = 10**400
        (runs / f"bad{number}").mkdir()
        (runs / f"bad{number}" / "result.json").write_text(json.dumps(content))
    assert len(load_results(runs)) == 1
    assert capsys.readouterr().err.count("it has an integer of 401 digits") == 2


@pytest.mark.parametrize("endless", [True, False])
def test_files_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endless: bool) -> None:
    monkeypatch.setattr(files, "_LARGEST", 1 << 20)
    path = tmp_path / "result.json"
    if endless:
        path.symlink_to("/dev/zero")
    else:
        path.write_text(json.dumps({**result().to_dict(), "more": "x" * (1 << 20)}))
    with pytest.raises(UserError, match="larger than 1 MiB, too large for a result"):
        read_result(path)


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    made = result("rnr", drop=0.2)
    write_result(tmp_path, made)
    path = tmp_path / "result.json"
    bits, noticed = 8 * path.stat().st_size, 0
    for bit in range(0, bits, 127):
        flip(path, bit)
        try:
            assert read_result(path) == made, bit
        except UserError as error:
            noticed += "\n" not in str(error) and str(path) in str(error)
        flip(path, bit)
    assert noticed > 0.9 * bits / 127


def test_an_edit_is_noticed_and_can_be_accepted(tmp_path: Path) -> None:
    write_result(tmp_path, result("rnr"))
    path = tmp_path / "result.json"
    content = json.loads(path.read_text())
    content["origin"]["commit"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not match its sha256: it is damaged or was edited; .*delete its line"):
        read_result(path)
    del content["sha256"]
    path.write_text(json.dumps(content, indent=4, sort_keys=True))
    assert read_result(path).origin.commit == "another"


def test_values_that_are_not_finite_become_null_with_a_note(tmp_path: Path) -> None:
    made = result("rnr")
    trainer = {key: made.to_dict()[key] for key in ("summary", "tasks")}
    record = {"task": 0, "update": 1, "role": "classifier", "seconds": 0.1, "revived_fraction": None, "parameters": 1}
    measured = {"task": 0, "phase": "end", "position": 1.0, "role": "classifier", "metrics": {"srank": float("-inf")}}
    spec = RunSpec.make("cl-digits", "mlp", "rnr", device="cpu")
    cost = made.cost.model_dump()
    reports = [{**record, "mean_residual": float("inf"), "largest_norm_ratio": 1.5}]
    found = compose_result(spec, trainer, reports, [measured], cost, ORIGIN, 1, None)
    assert found.not_finite == {"interventions[0].mean_residual": "inf", "plasticity[0].metrics.srank": "-inf"}
    write_result(tmp_path, found)
    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert content["interventions"][0]["mean_residual"] is None and content["plasticity"][0]["metrics"]["srank"] is None
    assert read_result(tmp_path / "result.json") == found


def test_a_return_that_is_not_finite_ends_the_run() -> None:
    made = acting("reset")
    trainer = {key: made.to_dict()[key] for key in ("summary", "returns", "events")}
    trainer["returns"][1]["value"] = float("inf")
    spec = RunSpec.make("rl-cartpole", "dqn-mlp", device="cpu")
    with pytest.raises(RunError, match=r"returns\[1\].value is inf, as the run has diverged; try a smaller --agent.lr"):
        compose_result(spec, trainer, [], [], made.cost.model_dump(), ORIGIN, 1, None)


def test_no_file_is_an_incomplete_run(tmp_path: Path) -> None:
    assert read_result_if_complete(tmp_path) is None
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_result(tmp_path / "result.json")


def test_a_run_with_a_nan_in_its_summary_fails() -> None:
    spec = RunSpec.make("rl-cartpole", "dqn-mlp", device="cpu")
    point = {"task": 0, "steps": 0, "value": 1.0, "bias": 0.0}
    trainer = {"summary": {"final_return": float("nan")}, "returns": [point], "events": []}
    cost = {"seconds": 1.0, "intervention_seconds": 0.0, "updates": 0}
    with pytest.raises(RunError, match=f"{spec.id} has no valid result: summary.final_return is nan"):
        compose_result(spec, trainer, [], [], cost, ORIGIN, 1, None)


def test_files_that_cannot_be_used_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = result("none")
    runs = written(tmp_path / "runs", [good])
    lacking = {**good.to_dict(), "summary": 3}
    broken = {"text": "{", "list": "[]", "schema": '{"schema": 99}', "lacking": json.dumps(lacking)}
    for name, text in broken.items():
        (runs / name).mkdir()
        (runs / name / "result.json").write_text(text)
    written(runs / "other", [result("none", final=0.6)])
    (found,) = load_results(runs)
    assert found.folder == runs / good.id and found == good
    told = capsys.readouterr().err
    assert told.count("skipped: ") == 5
    assert "lacking/result.json: summary is 3" in told
    assert "contradicts the result of the same run in" in told


@pytest.mark.parametrize("older", ["first", "second"])
def test_of_two_equal_results_the_newer_schema_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], older: str
) -> None:
    for name in ("first", "second"):
        folder = written(tmp_path / name, [result("none")])
        if name == older:
            path = folder / result("none").id / "result.json"
            content = json.loads(path.read_text())
            del content["run"], content["data_digest"], content["sha256"]
            path.write_text(json.dumps({**content, "schema": 1}))
    (found,) = load_results(tmp_path)
    assert found.run and found.data_digest
    assert not capsys.readouterr().err


def test_lean_results_have_a_summary_and_no_curves(tmp_path: Path) -> None:
    written(tmp_path, [result("none"), acting("none")])
    for full, lean in zip(load_results(tmp_path), load_results(str(tmp_path), lean=True), strict=True):
        assert (lean.summary, lean.cost, lean.is_rl, lean.folder) == (full.summary, full.cost, full.is_rl, full.folder)
        assert not lean.tasks and not lean.returns and not lean.plasticity


def test_a_folder_without_results_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run in"):
        load_results(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_results(tmp_path / "none")


@pytest.fixture
def with_reference(tmp_path: Path) -> Path:
    """A folder with own results, one of which repeats a reference result with another value."""
    runs = written(tmp_path / "runs", [result("none", 0, 0.9), result("none", 7), result("rnr", 0)])
    published = written(runs / "published" / "digits", [result("none", seed, 0.5) for seed in range(3)])
    (published.parent / REFERENCE_FILE).write_text("")
    return runs


def test_reference_results_are_loaded_only_on_request(with_reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = load_results(with_reference)
    assert {(run.intervention, run.seed, run.final) for run in own} == {
        *(("none", 0, 0.9), ("none", 7, 0.5), ("rnr", 0, 0.5))
    }
    assert (
        len(load_results(with_reference / "published")) == len(load_results(with_reference / "published/digits")) == 3
    )
    assert not capsys.readouterr().err


@pytest.mark.parametrize("change", ["nothing", "id", "data"])
def test_an_own_seed_never_replaces_that_of_a_reference(
    with_reference: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    (mine,) = (run for run in load_results(with_reference) if (run.intervention, run.seed) == ("none", 0))
    if change != "nothing":
        shutil.rmtree(mine.folder)
        if change == "id":  # a run with other metrics has another id, but is the same method
            mine.id += "_other"
        else:
            mine.data_digest = "ffffffffffff"
        written(with_reference, [mine])
    found = load_results(with_reference, with_reference=True)
    finals = sorted((run.seed, run.final) for run in found if run.intervention == "none")
    told = capsys.readouterr().err
    if change == "data":  # another setting
        assert finals == [(0, 0.5), (0, 0.9), (1, 0.5), (2, 0.5), (7, 0.5)] and not told
    else:
        assert finals == [(0, 0.5), (1, 0.5), (2, 0.5), (7, 0.5)]
        assert told.count("\n") == 1 and "left out: " in told and str(mine.id) in told


def test_reference_results_come_from_the_source_tree_or_are_reported_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = written(tmp_path / "runs", [result("none")])
    shipped = written(tmp_path / "shipped", [result("none", seed) for seed in (1, 2)])
    monkeypatch.setattr("plastibench.results.files._SHIPPED", shipped)
    assert [run.seed for run in load_results(runs, with_reference=True)] == [1, 2, 0]
    monkeypatch.setattr("plastibench.results.files._SHIPPED", tmp_path / "none")
    with pytest.raises(UserError, match="no reference results"):
        load_results(runs, with_reference=True)


def test_the_shipped_reference_is_marked_and_invisible_in_tensorboard() -> None:
    folder = Path(__file__).parents[2] / "runs" / "reference"
    assert (folder / REFERENCE_FILE).is_file() and len(find_results(folder)) > 100
    assert not [path for path in find_results(folder.parent) if folder in path.parents]
    assert not list(folder.rglob("events.out.tfevents.*"))
