from __future__ import annotations

import ast
import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest

import plastibench.interventions
from plastibench.metrics import INTERVENTIONS, METRICS
from plastibench.results import metrics_csv
from plastibench.training.runner import run
from tests.support.rl import tiny_rl

ROOT = Path(plastibench.__file__).parents[1]


@pytest.mark.parametrize("kind", ["supervised", "rl"])
def test_every_column_phase_and_name_of_a_run_is_documented(tiny: Any, tmp_path: Path, kind: str) -> None:
    spec = tiny("fire+rnr", metrics=("weights",)) if kind == "supervised" else tiny_rl("rnr", every=20)
    run(spec, runs_dir=tmp_path, quiet=True, threads=1)
    path = tmp_path / spec.id / "metrics.csv"
    with open(path, newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert set(header) <= set(metrics_csv.COLUMNS) and header == metrics_csv.columns(header[2])
    rows = list(metrics_csv.read(path))
    assert {row.phase for row in rows} <= set(metrics_csv.PHASES)
    groups = {row.metric.partition("-")[0] for row in rows if "/" in row.metric}
    assert groups <= {prefix.partition("-")[0] for prefix in metrics_csv.PREFIXES}
    assert {row.metric.rpartition("/")[2] for row in rows} <= set(METRICS) | set(INTERVENTIONS)
    evaluated = {row.metric for row in rows if row.phase == "evaluation"}
    assert ({"accuracy"} if kind == "supervised" else {"return", "q-bias"}) <= evaluated
    assert "loss" not in evaluated and {row.phase for row in rows if row.metric == "loss"} == {"training"}


def test_everything_that_a_method_reports_about_a_module_is_documented() -> None:
    noted = set()
    for path in Path(plastibench.interventions.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "note":
                noted |= {keyword.arg for keyword in node.keywords if keyword.arg}
    assert noted and noted <= set(INTERVENTIONS)


def test_the_documentation_lists_all_of_them() -> None:
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "docs" / "pages.py")
    assert spec is not None and spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    page = pages.names()["reference/_names.md"]
    for names in (metrics_csv.COLUMNS, metrics_csv.PHASES, metrics_csv.PREFIXES, METRICS, INTERVENTIONS):
        assert [name for name in names if f"`{name}`" not in page] == []
