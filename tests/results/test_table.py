from __future__ import annotations

import sys
from pathlib import Path

import pytest

from plastibench.config.errors import UserError
from plastibench.results.files import load_results
from plastibench.results.table import Results
from plastibench.results.tags import write_tags
from tests.leaderboard.made import acting, result, written


def test_a_row_per_run() -> None:
    found = Results([result("none", 1), result("rnr", intervention_options={"quantile": 0.2}, every=9), acting("none")])
    table = found.to_pandas()
    assert table[["env", "agent", "intervention", "seed"]].values.tolist() == [
        ["cl-digits", "mlp", "none", 1],
        ["cl-digits", "mlp", "rnr", 0],
        ["rl-cartpole", "dqn-mlp", "none", 0],
    ]
    assert table["id"].tolist() == [run.id for run in found]
    assert table["env.epochs"].tolist()[:2] == [2, 2] and table["env.noise"][0] == [0.5, 0.1, 0.0]
    assert table["intervention.quantile"].isna().tolist() == [True, False, True]
    assert table["run.every"].tolist() == [0, 9, 0]
    assert table["final_accuracy"].tolist()[:2] == [run.final for run in found[:2]]
    assert table["final_return"].isna().tolist() == [True, True, False]
    assert table["seconds"].tolist() == [10.0, 10.0, 10.0] and table["updates"].tolist() == [60, 60, 60]


def test_defaults_are_shown_beside_changed_options() -> None:
    table = Results([result("rnr"), result("rnr", intervention_options={"quantile": 0.2})]).to_pandas()
    assert table["intervention.quantile"].tolist() == [0.4, 0.2]
    assert "run.every" not in table and "intervention.tau" not in table


def test_a_row_per_evaluation() -> None:
    supervised, rl = result("none", 2), acting("reset")
    table = Results([supervised, rl]).to_pandas(rows="evaluation")
    mine = table[table["id"] == supervised.id]
    assert mine["task"].tolist() == [0, 0, 1, 1, 2, 2] and set(mine["seed"]) == {2}
    assert (mine["position"].tolist(), mine["value"].tolist()) == supervised.curve()
    assert table[table["env"] == "rl-cartpole"]["position"].tolist() == [0, 1000, 2000, 3000]
    assert "seconds" not in table and "final_accuracy" not in table


def test_wrong_requests_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="rows is 'task'; expected 'run' or 'evaluation'"):
        Results([result()]).to_pandas(rows="task")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'plastibench\[pandas\]'"):
        Results([result()]).to_pandas()


def test_code_and_tags_tell_runs_apart(tmp_path: Path) -> None:
    plugin = result("reset").model_copy(update={"code": {"intervention": "92d6b382674ebb0d", "env": "5f1c7c"}})
    written(tmp_path, [plugin, result("none")])
    write_tags(tmp_path / plugin.id, {"trial", "first"})
    table = load_results(tmp_path).to_pandas().set_index("intervention")
    assert table["code"].to_dict() == {"reset": "92d6b3", "none": ""}
    assert table["tags"].to_dict() == {"reset": "first trial", "none": ""}
    evaluations = load_results(tmp_path).to_pandas(rows="evaluation")
    assert set(evaluations[evaluations["code"] == "92d6b3"]["intervention"]) == {"reset"}
