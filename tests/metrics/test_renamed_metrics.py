"""Old metric names, in requests and in old results, are shown under the current names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plastibench import plotting
from plastibench.config import renamed
from plastibench.metrics import METRICS
from plastibench.results.result import Result
from tests.plotting.made import results_of, supervised_result

OLD, NEW = "layer-rank-share", "layer-rank-fraction"


def test_current_names_are_metrics_and_old_names_are_not() -> None:
    assert set(renamed.METRICS.values()) <= set(METRICS) and not set(renamed.METRICS) & set(METRICS)


def recorded_as(name: str, run: Result) -> Result:
    """A result whose file, of the schema with old names, has the value of srank under another name."""
    content = run.to_dict()
    rows = [(row, row.pop("metrics")["srank"]) for row in content["plasticity"]]
    content["plasticity"] = [{**row, "place": row.pop("position"), name: value} for row, value in rows]
    return Result.from_dict({**content, "schema": 2})


@pytest.mark.parametrize("requested", [OLD, NEW])
@pytest.mark.parametrize("recorded", [OLD, NEW])
def test_curves_accept_old_names(requested: str, recorded: str) -> None:
    found = [recorded_as(recorded, run) for run in results_of("none")]
    (axis,) = plotting.draw("curves", found, metric=requested).axes
    assert set(axis.lines[0].get_ydata()) == {5.0} and axis.get_ylabel() == NEW


@pytest.mark.parametrize("requested", [OLD, NEW])
@pytest.mark.parametrize("recorded", [OLD, NEW])
def test_heatmap_accepts_old_names(tmp_path: Path, requested: str, recorded: str) -> None:
    rows = f"update,task,epoch,phase,metric,value\n7,0,1.5,end,layers-classifier/a/{recorded},0.5\n"
    (tmp_path / "metrics.csv").write_text(rows, encoding="utf-8")
    axis, _ = plotting.draw("heatmap", [supervised_result(folder=tmp_path)], metric=requested).axes
    np.testing.assert_array_equal(axis.images[0].get_array(), [[0.5]])
