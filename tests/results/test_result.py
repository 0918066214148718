from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plastibench.config import renamed
from plastibench.config.errors import UserError
from plastibench.results.result import Cost, Result
from tests.leaderboard.made import acting, result

WRONG = {
    "summary/final_accuracy": [(None, "summary.final_accuracy is missing"), ("x", "summary.final_accuracy is 'x'")],
    "summary/mean_drop": [(float("nan"), "summary.mean_drop is nan"), (1e300, "summary.mean_drop is 1e+300")],
    "summary": [(3, "summary is 3"), ({}, "summary.final_accuracy is missing")],
    "cost/seconds": [("a", "cost.seconds is 'a'"), (None, "cost.seconds is missing"), (-1, "cost.seconds is -1")],
    "cost/updates": [(10**400, "cost.updates is 1000"), (2.5, "cost.updates is 2.5"), (True, "cost.updates is True")],
    "origin": [({}, "origin.command is missing"), ([], "origin is []")],
    "origin/hardware": [(None, "origin.hardware is missing")],
    "origin/versions": [({"plastibench": "0.1.0"}, "origin.versions: torch is missing")],
    "options": [({}, "options.env is missing")],
    "options/env": [({"x": [[[[]] * 2]] * 2}, ""), ({"x": json.loads("[" * 400 + "]" * 400)}, "options.env.x")],
    "changed/env": [([], "changed.env is []")],
    "seed": [(True, "seed is True"), ("1", "seed is '1'"), (1.0, "seed is 1.0"), (-1, "seed is -1")],
    "id": [(None, "id is missing"), (3, "id is 3")],
    "tasks": [(None, "tasks is missing"), ([], "tasks is []"), ([3], "tasks[0] is 3")],
    "tasks/1/end": [("high", "tasks[1].end is 'high'"), (1.5, "tasks[1].end is 1.5")],
    "tasks/1/curve": [([], "tasks[1].curve is []"), ([[0.0]], "tasks[1].curve[0][1] is missing")],
    "returns": [([{"task": 0, "steps": 0, "value": 0.0, "bias": 0.0}], "expected either tasks or returns")],
    "schedule": [(None, "schedule is missing"), ([], "schedule is []")],
    "plasticity": [
        ("none", "plasticity is 'none'"),
        ([1], "plasticity[0] is 1"),
        ([{"metrics": {}}], "plasticity[0].task is missing"),
        (
            [{"task": 0, "phase": "end", "role": "critic", "metrics": {"srank": "x"}}],
            "plasticity[0].metrics.srank is 'x'",
        ),
    ],
    "env_version": [("x", "env_version is 'x'"), (0, "env_version is 0")],
    "data_digest": [([1], "data_digest is [1]")],
}


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    inner: Any = content
    for key in way:
        inner = inner[key]
    inner[last] = value
    return content


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_reported_by_its_path(path: str) -> None:
    for value, message in WRONG[path]:
        content = changed(result("reset").to_dict(), path, value)
        if not message:
            Result.from_dict(content)
            continue
        with pytest.raises(UserError) as told:
            Result.from_dict(content)
        assert str(told.value).startswith(message)
        assert "\n" not in str(told.value) and len(str(told.value)) < 200


@pytest.mark.parametrize("content", [None, [], 3, "x", {}, {"schema": None}])
def test_other_json_is_not_a_result(content: Any) -> None:
    with pytest.raises(UserError, match="not a result of plastibench"):
        Result.from_dict(content)


@pytest.mark.parametrize(
    ("schema", "message"),
    [(99, "schema 99; update plastibench"), ("two", "unknown schema 'two'"), ([], r"unknown schema \[\]")],
)
def test_an_unknown_schema_is_reported(schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Result.from_dict({"schema": schema})


def test_control_characters_do_not_reach_the_terminal() -> None:
    content = result().to_dict()
    content["options"]["env"]["\x1b[31m"] = object()
    with pytest.raises(UserError) as told:
        Result.from_dict(content)
    assert str(told.value).isprintable()


def test_rl_results_have_events() -> None:
    content = acting().to_dict()
    del content["events"]
    with pytest.raises(UserError, match="events is missing"):
        Result.from_dict(content)


def test_a_diverged_run_can_be_read() -> None:
    content = acting().to_dict()
    content["returns"][1]["bias"] = float("inf")
    record = {"task": 0, "phase": "training", "position": 9, "role": "critic"}
    content["plasticity"] = [{**record, "metrics": {"srank": float("nan"), "fau": None}}]
    assert Result.from_dict(content).plasticity[0].metrics["fau"] is None


def test_unknown_keys_are_ignored() -> None:
    content = result().to_dict()
    content["note"] = content["cost"]["joules"] = "x"
    assert Result.from_dict(content).to_dict() == result().to_dict()


@pytest.mark.parametrize("made", [result("rnr", drop=0.1, every=9), acting("reset")])
def test_round_trip(made: Result) -> None:
    text = json.dumps(made.to_dict())
    again = Result.from_dict(json.loads(text))
    assert again == made and json.dumps(again.to_dict()) == text
    assert "-" not in "".join(key for part in ("summary", "cost") for key in made.to_dict()[part])


def test_supervised_and_rl_results_differ_in_is_rl_and_final() -> None:
    supervised, rl = result(final=0.5), acting(final=90.0)
    assert not supervised.is_rl and supervised.final == supervised.summary.final_accuracy == 0.5
    assert rl.is_rl and rl.final == rl.summary.final_return == pytest.approx(60.0)


def test_the_cost_of_interventions_is_a_fraction_of_the_time() -> None:
    assert Cost(seconds=8.0, intervention_seconds=2.0, updates=1).intervention_fraction == 0.25


def test_old_files_are_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renamed.METRICS, "layer-rank-share", "layer-rank-fraction")
    old = result("reset").to_dict()
    old["schema"] = 2
    old["summary"] = {"final-accuracy": 0.5, "unrecovered-share": 0.25, "mean-output-kl": None}
    old["cost"] = {"seconds": 9.0, "intervention-seconds": 0.5, "updates": 7, "network-bytes": 3}
    old["interventions"] = [
        {"task": 1, "update": 3, "role": "critic", "seconds": 1.0, "revived-share": 0.5, "parameters": 2}
    ]
    moment = {"task": 1, "phase": "end", "place": 2, "role": "critic"}
    old["plasticity"] = [{**moment, "dormant-ratio": 0.1, "layer-rank-share": 0.2}]
    old["scenario"] = {"version": 2, "data": old.pop("data_digest")}
    del old["env_version"]
    new = Result.from_dict(old)
    assert (new.summary.final_accuracy, new.summary.unrecovered_fraction) == (0.5, 0.25)
    assert (new.cost.intervention_seconds, new.cost.network_bytes) == (0.5, 3)
    assert new.interventions[0].revived_fraction == 0.5
    (record,) = new.plasticity
    assert record.position == 2 and record.metrics == {"dormant-ratio": 0.1, "layer-rank-fraction": 0.2}
    assert (new.env_version, new.data_digest) == (2, result().data_digest)
    assert new.origin.versions == old["origin"]["versions"]
    for key in ("run", "schedule", "scenario"):
        del old[key]
    new = Result.from_dict({**old, "schema": 1})
    assert (new.env_version, new.data_digest, new.run, new.schedule) == (1, None, {}, {})


@pytest.mark.parametrize("key", ["summary", "cost", "interventions", "plasticity", "scenario", "options", "origin"])
@pytest.mark.parametrize("value", [None, 3, "x", [3], {"a": 3}])
def test_damaged_old_files_are_reported(key: str, value: Any) -> None:
    if (key, value) == ("scenario", {"a": 3}):
        return  # all of its keys have defaults
    with pytest.raises(UserError, match=key):
        Result.from_dict({**result().to_dict(), "schema": 2, key: value})


def test_the_curve_covers_the_run() -> None:
    positions, accuracies = result(final=0.5, drop=0.1).curve()
    assert positions == [0, 2, 2, 4, 4, 6]  # three tasks of two epochs
    assert accuracies == pytest.approx([0.1, 0.3, 0.2, 0.4, 0.3, 0.5])
    assert acting(final=90.0).curve() == ([0, 1000, 2000, 3000], pytest.approx([0.0, 30.0, 60.0, 90.0]))


def test_plot_draws_the_curve_and_task_boundaries() -> None:
    from matplotlib.figure import Figure

    made = result("rnr", seed=3, drop=0.1)
    ax = Figure().subplots()
    assert made.plot(ax) is ax
    line, *boundaries = ax.lines
    first, second, third = [(0, 0.1), (2, 0.3), (2, 0.2)], [(2, 0.2), (4, 0.4), (4, 0.3)], [(4, 0.3), (6, 0.5)]
    vertices = [*first, (2, math.nan), *second, (4, math.nan), *third]  # the line is interrupted between tasks
    assert line.get_xydata().tolist() == [pytest.approx(vertex, nan_ok=True) for vertex in vertices]
    assert [boundary.get_xdata()[0] for boundary in boundaries] == [2, 4]
    assert (ax.get_xlabel(), ax.get_ylabel(), line.get_label()) == ("epoch", "accuracy", "rnr, seed 3")
    ax = acting().plot(Figure().subplots())
    assert len(ax.lines) == 1 and (ax.get_xlabel(), ax.get_ylabel()) == ("agent steps", "return")


def test_plot_makes_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    ax = result().plot()
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close(ax.figure)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"plots need matplotlib: pip install 'plastibench\[figures\]'"):
        result().plot()


def test_the_json_schema_describes_every_key() -> None:
    schema = Result.model_json_schema()
    assert set(result().to_dict()) - {"schema"} <= set(schema["properties"])
    assert {"Summary", "Task", "Event", "Cost", "Origin"} <= set(schema["$defs"])


def test_importing_it_is_cheap(pytestconfig: pytest.Config) -> None:
    code = (
        "import sys; from plastibench.results.result import Result\n"
        "assert not {'torch', 'numpy', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(pytestconfig.rootpath))
