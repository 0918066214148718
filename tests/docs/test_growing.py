"""The page Growing: its tables are those of the formulas, which hold for what was measured and for live tensors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from plastibench.nn.memory import evaluation_bytes, refit_plan, training_bytes

ROOT = Path(__file__).resolve().parents[2]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


growing, measuring = loaded("growing"), loaded("measure_growing")
POINTS = [json.loads(line) for line in growing.POINTS.read_text(encoding="utf-8").splitlines()]


def test_the_page_has_the_tables_of_the_formulas() -> None:
    page = growing.PAGE.read_text(encoding="utf-8")
    assert growing.with_tables(page) == page


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point['model']}: {point['part']}")
def test_measured_memory_is_within_the_stated_error(point: dict) -> None:
    measured = point["MiB"] * growing.MIB
    formula = growing.predicted(point["model"], point["part"], point["samples"])
    assert 1 / growing.ERROR <= measured / formula <= growing.ERROR


@pytest.mark.parametrize("name", ["vit-nano", "vit-tiny, 2 blocks"])
def test_activations_are_those_of_the_formulas(name: str) -> None:
    network, batch, formula = measuring.network_of(name), measuring.batch_of(name, 8), growing.MEASURED[name]
    assert sum(p.numel() for p in network.module.parameters()) == pytest.approx(formula.parameters, rel=0.02)
    assert evaluation_bytes(network, batch) == formula.evaluation
    assert training_bytes(network, batch) == pytest.approx(formula.training, rel=0.08)
    for limit in (0.001, 0.01, 0.1):
        allowed = limit * growing.GIB
        plan = refit_plan(network, batch, limit)
        assert plan.streamed == (2 * len(batch) * formula.evaluation > allowed)
        assert not plan.streamed or plan.chunk == formula.refit_chunk(len(batch), allowed)
