from __future__ import annotations

import json
from typing import Any

import pytest

from plastibench.results.shape import mistake
from tests.leaderboard.made import acting, result

BROKEN = {
    "summary/final-accuracy": [(None, "summary.final-accuracy is missing"), ("x", "summary.final-accuracy is 'x'")],
    "summary/mean-drop": [(float("nan"), "summary.mean-drop is nan"), (1e300, "summary.mean-drop is 1e+300")],
    "cost/seconds": [("a", "cost.seconds is 'a'"), (None, "cost.seconds is missing")],
    "origin": [({}, "origin.commit"), ([], "origin is missing")],
    "origin/hardware": [(None, "origin.hardware is missing")],
    "options": [({}, "options.env is missing")],
    "changed/env": [([], "changed.env is [")],
    "seed": [(True, "seed is True"), ("1", "seed is '1'")],
    "tasks": [
        (None, "neither tasks nor returns"),
        ([], "neither tasks nor returns"),
        ([3], "tasks is no list of objects"),
    ],
    "tasks/1/end": [("high", "tasks[1].end is 'high'")],
    "schedule": [(None, "schedule is None")],
    "plasticity": [
        ("none", "plasticity is 'none'"),
        ([1], "plasticity is no list of objects"),
        ([{"dormant-ratio": 0.5}], "plasticity[0].task is missing"),
        ([{"task": 0, "phase": "end", "role": "critic", "dormant-ratio": "x"}], "plasticity[0].dormant-ratio is 'x'"),
    ],
    "scenario": [({"data": [1]}, "scenario.data is [1]"), ({"version": "x"}, "scenario.version is 'x'")],
}


@pytest.mark.parametrize("path", BROKEN)
def test_what_readers_rely_on_is_there(path: str) -> None:
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for value, message in BROKEN[path]:
        made = result("reset")
        inner: Any = made
        for key in way:
            inner = inner[key]
        inner[last] = value
        assert message in mistake(made) or (value == {} and mistake(made).startswith("origin."))


def test_what_acts_has_events() -> None:
    made = acting()
    del made["events"]
    assert mistake(made) == "events are missing"


def test_results_of_runs_are_well(pytestconfig: pytest.Config) -> None:
    assert mistake(result("rnr", drop=0.1)) == "" and mistake(acting()) == ""
    published = sorted((pytestconfig.rootpath / "runs" / "reference").glob("**/result.json"))
    assert len(published) > 100
    for path in published:
        assert mistake(json.loads(path.read_text(encoding="utf-8"))) == "", path
