"""The example of a package with an intervention: installed by pip, found, listed and run."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("pip")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "plastibench-shrink"
BUDGET = ["--agent.width", "8", "--env.epochs", "1", "--env.train-size", "40", "--env.stop-after", "2"]


def python(*arguments: object, path: Path) -> str:
    """What a Python of its own prints, with one folder beside this checkout to import from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put it, without network; built from a copy, for the build leaves files behind."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)
    alone = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    python("-m", "pip", "install", "--quiet", *alone, "--target", target, source, path=target)
    return target


@pytest.mark.slow
def test_it_is_listed(installed: Path) -> None:
    listed = python("-m", "plastibench", "list", "interventions", path=installed)
    assert "shrink " in listed and "Multiply every weight matrix by a factor" in listed


@pytest.mark.slow
def test_it_runs_and_shrinks(installed: Path, tmp_path: Path) -> None:
    """Weights that became zero all give one answer, so the output no longer depends on the image."""
    given = ["--intervention", "shrink", "--intervention.factor", "0", "--runs-dir", tmp_path, "--device", "cpu"]
    python("-m", "plastibench", "run", "cl-digits", "--agent", "mlp", *given, *BUDGET, "--quiet", path=installed)
    (result,) = tmp_path.glob("*/result.json")
    found = json.loads(result.read_text())
    (report,) = found["interventions"]
    assert report["parameters"] == 64 * 8 + 8 * 8 + 8 * 10
    assert found["tasks"][1]["after"] == pytest.approx(0.1, abs=0.02)  # of ten classes


def test_its_own_test_passes(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    runpy.run_path(str(EXAMPLE / "tests" / "test_shrink.py"))["test_matrices_shrink_and_biases_stay"]()
