from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plastibench import plotting
from plastibench.config.errors import UserError
from plastibench.plotting import recorded
from plastibench.results import metrics_csv
from plastibench.training.runner import run
from tests.plotting.made import rl_result, supervised_result

HEADER = ",".join(metrics_csv.columns("epoch"))


def with_table(folder: Path, *rows: str) -> object:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return supervised_result(folder=folder)


def test_every_name_in_metrics_csv_can_be_drawn(tiny, tmp_path: Path) -> None:
    spec = tiny("rnr", metrics=("gradients",))
    found = [run(spec, runs_dir=tmp_path, quiet=True, threads=1)]
    names = {row.metric for row in metrics_csv.read(tmp_path / spec.id / "metrics.csv")}
    assert {"loss", "accuracy", "drop", "gradient-norm", "agreement"} < names
    for name in sorted(name for name in names if not name.startswith("layers-") or "fc1" in name):
        values = recorded.points(found[0], name)
        assert values and all(0 <= point.position <= 6 for point in values), name
    for name in ("loss", "gradient-norm", "intervention-classifier/parameters", "plasticity-classifier/srank"):
        (axis,) = plotting.draw("curves", found, metric=name).axes
        assert len(axis.lines) == 1 and axis.get_ylabel() == name
    assert plotting.draw("curves", found, metric="loss").axes[0].get_xlabel() == "epoch"
    assert plotting.draw("curves", found, metric="agreement").axes[0].get_xlabel() == "task"


def test_epochs_count_from_the_start_of_the_run_and_values_are_those_of_the_file(tmp_path: Path) -> None:
    made = with_table(tmp_path / "a", "5,0,5,training,loss,2.5", "9,1,0,training,loss,2", "9,1,10,training,loss,1")
    assert [(point.position, point.value) for point in recorded.points(made, "loss")] == [(5, 2.5), (10, 2), (20, 1)]
    (axis,) = plotting.draw("curves", [made], metric="loss").axes
    assert axis.lines[0].get_xydata().tolist() == [[5, 2.5], [10, 2], [20, 1]]


def test_older_files_say_training_where_a_value_was_evaluated(tmp_path: Path) -> None:
    with_table(
        tmp_path / "a", "5,0,5,training,accuracy,0.5", "5,0,5,training,loss,2", "5,0,5,training,layers-q/a/srank,2"
    )
    phases = [row.phase for row in metrics_csv.read(tmp_path / "a" / "metrics.csv")]
    assert phases == ["evaluation", "training", "evaluation"]


@pytest.mark.parametrize("name", ["drop", "accuracy", "auc"])
def test_published_results_without_a_table_have_what_the_result_holds(name: str) -> None:
    made = supervised_result("reset")
    values = [point.value for point in recorded.points(made, name)]
    expected = {
        "drop": [task.drop for task in made.tasks[1:]],
        "accuracy": [value for task in made.tasks for _, value in task.curve],
        "auc": [task.auc for task in made.tasks],
    }
    assert values == expected[name]


def test_rl_metrics_are_drawn_over_steps() -> None:
    found = [rl_result("rnr", seed) for seed in range(3)]
    for name in ("q-bias", "return", "drop"):
        (axis,) = plotting.draw("curves", found, metric=name).axes
        assert axis.get_xlabel() == "steps" and axis.lines[0].get_xdata().max() >= 2000, name


def test_a_misspelt_name_is_corrected_and_layers_do_not_fill_the_message(tmp_path: Path) -> None:
    made = with_table(tmp_path / "a", "5,0,5,training,gradient-norm,2", "5,0,5,end,layers-classifier/a/srank,2")
    with pytest.raises(UserError, match=r"'gradient-nrm'; did you mean 'gradient-norm'\?") as told:
        plotting.draw("curves", [made], metric="gradient-nrm")
    assert "layers-" not in str(told.value)
    assert np.isfinite(plotting.draw("curves", [made], metric="layers-classifier/a/srank").axes[0].lines[0].get_ydata())
