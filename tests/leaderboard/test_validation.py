from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.errors import UserError
from plastibench.leaderboard.validation import add
from plastibench.results.files import read_result
from plastibench.results.result import Result
from tests.leaderboard.made import acting, result

Change = Callable[[dict[str, Any]], Any]


def file(folder: Path, content: Any) -> Path:
    path = folder / "sent.json"
    content = content.to_dict() if isinstance(content, Result) else content
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("made", [result("reset", drop=0.2), result("rnr", every=9), acting("reset")])
def test_a_good_result_is_added(made: Result, tmp_path: Path) -> None:
    path = file(tmp_path, {**made.to_dict(), "note": "unknown keys are kept in the file"})
    added, unchecked = add(path, tmp_path / "runs")
    assert read_result(added).to_dict() == made.to_dict() and unchecked == []
    assert added.read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        add(path, tmp_path / "runs")


def changed(path: str, value: Any) -> Change:
    def change(made: dict[str, Any]) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in way:
            made = made[key]
        made[last] = value

    return change


BAD = {
    "summary/final_accuracy": (0.99, "summary.final_accuracy is 0.99, but the tasks make it 0.5"),
    "summary/mean_drop": (None, "summary.mean_drop is None"),
    "tasks/2/end": (1.7, r"tasks\[2\].end is 1.7; it should be less than or equal to 1"),
    "tasks/1/curve/1/1": ("high", r"tasks\[1\].curve\[1\]\[1\] is 'high'; it should be a valid number"),
    "tasks/1/task": (5, "tasks are not numbered"),
    "tasks/1/before": (0.9, "task 1 begins at 0.9, but the one before it ended at 0.3"),
    "seed": (3, "seed or every differ"),
    "options/agent/lr": (0.1, "but the names and options in it make"),
    "id": ("../../evil", r"id is '../../evil'; String should match pattern"),
    "run": ({}, "run.device is missing"),
    "cost/intervention_seconds": (11.0, "the intervention took longer than the whole run"),
    "cost/metric_seconds": (10.5, "intervention and metrics took longer than the whole run"),
    "changed/intervention": ({"force": 3}, "changed.intervention is not what differs from the options of reset"),
    "schedule": ({"until": 7}, "schedule is not what run says"),
    "summary": ({}, "summary.final_accuracy is missing"),
    "cost/seconds": (-1, "cost.seconds is -1; it should be greater than or equal to 0"),
    "cost/updates": (0, "cost.updates is 0"),
    "origin/versions": ({}, "origin.versions: plastibench is missing"),
    "data_digest": ("<script>", "data_digest is '<script>'; String should match"),
    "schema": (4, "unknown schema 4; update plastibench"),
    "interventions": (
        [{"task": 0, "update": 99, "role": "a", "seconds": 1, "revived_fraction": 1, "parameters": 1}],
        "at update 99 of 60",
    ),
}


@pytest.mark.parametrize("path", BAD)
def test_a_bad_one_is_refused_and_nothing_is_written(path: str, tmp_path: Path) -> None:
    value, message = BAD[path]
    made = json.loads(json.dumps(result("reset", drop=0.2).to_dict()))
    changed(path, value)(made)
    with pytest.raises(UserError, match=message) as told:
        add(file(tmp_path, made), tmp_path / "runs")
    assert "\n" not in str(told.value) and "sent.json" in str(told.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[1]", "not a result of plastibench"),
        ('{"schema": 3}', "id is missing"),
        ('{"schema": 2}', "id is missing"),
        ('{"schema": 1}', "schema 1 lacks what a comparison needs; rerun"),
        ('{"schema": 3, "cost": NaN}', "NaN is not a number"),
        ("[" * 200_000, "cannot be read"),
        ('{"schema": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)
def test_what_is_no_result_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        add(file(tmp_path, content), tmp_path / "runs")


def test_a_missing_task_and_a_none_that_did_something_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none changed the accuracy, at the switch to task 1"):
        add(file(tmp_path, result("none", drop=0.2)), tmp_path / "runs")
    with pytest.raises(UserError, match=r"3 tasks, but cl-digits with these options has 2"):
        add(file(tmp_path, result("none", env_options={"stop_after": 2})), tmp_path / "runs")


def test_another_result_of_the_same_run_is_kept(tmp_path: Path) -> None:
    place, _ = add(file(tmp_path, result("none", final=0.5)), tmp_path / "runs")
    with pytest.raises(UserError, match=r"same run \(final_accuracy 0.5 and final_accuracy 0.6\)"):
        add(file(tmp_path, result("none", final=0.6)), tmp_path / "runs")
    assert read_result(place).final == 0.5


def test_a_run_under_way_is_left_alone(tmp_path: Path) -> None:
    made = result("none")
    folder = tmp_path / "runs" / made.id
    folder.mkdir(parents=True)
    (folder / "spec.toml").write_text("")
    with pytest.raises(UserError, match="the same run is under way"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_an_unknown_intervention_is_taken_as_stated(tmp_path: Path) -> None:
    from plastibench.config.spec import PARTS, identity

    made = result("reset")
    made.intervention, made.options.intervention = "theirs", {"force": 3}
    parts = [(getattr(made, part), getattr(made.options, part)) for part in PARTS]
    made.id = made.group = identity(parts, made.run)
    _, (unchecked,) = add(file(tmp_path, made), tmp_path / "runs")
    assert "intervention theirs is not known here" in unchecked


def test_a_changed_option_that_is_not_stated_is_refused(tmp_path: Path) -> None:
    made = result("rnr", intervention_options={"quantile": 0.2})
    assert made.changed.intervention == {"quantile": 0.2}
    made.changed.intervention = {}
    with pytest.raises(UserError, match=r"changed.intervention is not what differs"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_a_wrong_normalised_return_is_refused(tmp_path: Path) -> None:
    made = acting("reset")
    made.summary.normalised_return += 0.1
    with pytest.raises(UserError, match=r"summary.normalised_return is .*, but the evaluations make it"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_a_missing_value_is_refused(tmp_path: Path) -> None:
    made = result("reset", drop=0.2).to_dict()
    del made["summary"]["mean_drop"]
    with pytest.raises(UserError, match=r"summary.mean_drop is None"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_a_result_of_schema_2_is_added_as_it_is(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    published = sorted((pytestconfig.rootpath / "runs" / "reference").glob("**/result.json"))
    path = next(path for path in published if json.loads(path.read_text())["schema"] == 2)
    added, _ = add(path, tmp_path / "runs")
    assert added.read_bytes() == path.read_bytes() and added.parent.name == path.parent.name
