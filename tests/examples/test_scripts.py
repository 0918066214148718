from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXPECTED = {  # script: arguments, packages it needs, part of its output, files it leaves
    "own_training_loop.py": ([], [], "task 8: accuracy", ["checkpoint.pt"]),
    "huggingface_trainer.py": ([], ["transformers", "accelerate"], "last intervention: 1", []),
    "lightning_trainer.py": ([], ["lightning"], "last intervention: ", []),
    "stable_baselines3_agent.py": ([], ["stable_baselines3"], "timestep 2,000: critic", ["agent.zip", "callback.pt"]),
    "sweep_and_plot.py": (["--tasks", "2", "--seeds", "1"], ["pandas", "matplotlib"], "rnr", ["sweep.png"]),
}
SLOW = {"repair_before_finetuning.py": ([], [], "fire", [])}


def run(script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    arguments, packages, output, files = {**EXPECTED, **SLOW}[script]
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setenv("MPLBACKEND", "agg")
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert output in capsys.readouterr().out
    for file in files:
        assert (folder / file).stat().st_size > 0


@pytest.mark.parametrize("script", EXPECTED)
def test_scripts_run_as_they_are(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(script, capsys, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", SLOW)
def test_slow_scripts_run_as_they_are(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(script, capsys, monkeypatch, tmp_path)


def test_every_script_is_tested_and_says_how_to_run_it() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {*EXPECTED, *SLOW}
    for script in scripts:
        docstring = ast.get_docstring(ast.parse((EXAMPLES / script).read_text(encoding="utf-8")))
        assert docstring and f"python examples/{script}" in docstring
