from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"own_agent": 2, "own_data": 4, "own_environment": 2, "own_optimizer": 3}  # and the results each prints
OTHERS = {  # script: arguments, packages that it needs, part of its output, files that it leaves
    "own_training_loop.py": ([], [], "task 8: accuracy", ["checkpoint.pt"]),
    "huggingface_trainer.py": ([], ["transformers", "accelerate"], "last intervention: 1", []),
    "lightning_trainer.py": ([], ["lightning"], "last intervention: ", []),
    "stable_baselines3_agent.py": ([], ["stable_baselines3"], "timestep 2,000: critic", ["agent.zip", "callback.pt"]),
    "sweep_and_plot.py": (["--tasks", "2", "--seeds", "1"], ["pandas", "matplotlib"], "rnr", ["sweep.png"]),
}
SLOW = {"repair_before_finetuning.py": ([], [], "fire", [])}
RUN = "import runpy, sys; [runpy.run_path(path, run_name='__main__') for path in sys.argv[1:]]"


def run(folder: Path, *command: object) -> str:
    paths = [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    return done.stdout


def test_scripts_for_own_parts_run_as_they_are(tmp_path: Path) -> None:
    """In one process, because importing takes longer than the runs."""
    said = run(tmp_path, "-c", RUN, *(ROOT / "examples" / f"{name}.py" for name in SCRIPTS))
    assert len(said.splitlines()) == sum(SCRIPTS.values()) == len(list((tmp_path / "runs").iterdir()))


@pytest.mark.slow
def test_commands_of_the_scripts_run(tmp_path: Path) -> None:
    """The commands in their docstrings, shortened."""
    small = ["--env.epochs", 1, "--env.stop-after", 2, "--agent.width", 8]
    tasks = ["--agent.learning-starts", 100, "--env.steps", 200, "--env.evaluate-every", 100]
    for path in (ROOT / "examples").glob("own_*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    plastibench = ["-m", "plastibench", "run"]
    run(tmp_path, *plastibench, "cl-own", "--env.path", "own_data.py:arrays", "--agent", "mlp", *small)
    lion = ["--agent.optimizer", "own_optimizer.py:Lion", "--agent.lr", "1e-4"]
    run(tmp_path, *plastibench, "relabel-digits", "--agent", "mlp", *lion, *small)
    own_id = ["--env.id", "own_environment:examples/Corridor-v0", "--agent", "dqn-mlp", "--every", 20]
    run(tmp_path, *plastibench, "gym", *own_id, *tasks, "--intervention", "redo")
    run(tmp_path, *plastibench, "corridor-turns", "--plugin", "own_environment.py", "--agent", "dqn-mlp", *tasks)
    agent = ["--plugin", "own_agent.py", "--agent", "small-cnn", "--agent.channels", 4, *small[:4]]
    run(tmp_path, *plastibench, "relabel-digits", *agent)
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 5


def run_here(script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    arguments, packages, output, files = {**OTHERS, **SLOW}[script]
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setenv("MPLBACKEND", "agg")
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert output in capsys.readouterr().out
    for file in files:
        assert (folder / file).stat().st_size > 0


@pytest.mark.parametrize("script", OTHERS)
def test_scripts_run_as_they_are(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_here(script, capsys, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", SLOW)
def test_slow_scripts_run_as_they_are(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_here(script, capsys, monkeypatch, tmp_path)


def test_every_script_is_tested_and_says_how_to_run_it() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {*OTHERS, *SLOW, *(f"{name}.py" for name in SCRIPTS)}
    for script in scripts:
        docstring = ast.get_docstring(ast.parse((ROOT / "examples" / script).read_text(encoding="utf-8")))
        assert docstring and script in docstring
