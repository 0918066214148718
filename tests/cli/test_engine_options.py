from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plastibench.cli.engines import _minutes, resolve_devices_for
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec

SWEEP = """
[env]
name = "relabel-digits"
tasks = 2
epochs = 1
train-size = 40
[agent]
name = "mlp"
width = 8
lr = [0.003, 1e30]
[run]
device = "cpu"
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--address auto", "--address needs --engine ray, but the engine is local"),
        ("--cpus 2", "--cpus needs --engine ray or slurm"),
        ("--engine ray --partition low", "--partition needs --engine slurm, but the engine is ray"),
        ("--engine slurm --address auto", "--address needs --engine ray"),
        ("--engine ray --submit-only", "--submit-only needs --engine slurm"),
        ("--engine slurm --submit-only --fail-fast", "cannot be combined"),
        ("--engine slurm --gpus 0.5", "whole GPUs"),
        ("--engine ray --gpus 1.5", "whole GPUs"),
        ("--engine ray --gpus 1", "all runs use the CPU"),
        ("--engine slurm --dry-run", "--dry-run estimates the cost on this machine"),
        ("--engine slurm --time 1:00", "expected minutes"),
        ("--engine slurm --slurm a:b", "expected KEY=VALUE"),
        ("--engine slurm --slurm cluster=moon", "expected slurm or local"),
        ("--engine moon", "unknown 'moon'"),
        ("--engine ray --memory 0", "not a positive number"),
    ],
)
def test_wrong_combinations_are_refused_in_one_line(
    say: Callable[..., Any], sweep: Path, tmp_path: Path, words: str, reason: str
) -> None:
    said = say("sweep", sweep, "--runs-dir", tmp_path / "r", *words.split())
    assert said.status == 2 and said.err.count("\n") == 1 and reason in said.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("engine", "module", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_missing_library_is_named(
    say: Callable[..., Any],
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    module: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = say("sweep", sweep, "--runs-dir", tmp_path / "r", "--engine", engine)
    assert said.status == 2 and f"pip install 'plastibench[{extra}]'" in said.err and said.err.count("\n") == 1


def test_without_slurm_the_command_says_how_to_try_it(
    say: Callable[..., Any], sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    said = say("sweep", sweep, "--runs-dir", tmp_path / "r", "--engine", "slurm")
    assert said.status == 2 and "no sbatch" in said.err and "--slurm cluster=local" in said.err
    assert not (tmp_path / "r").exists()


def test_help_imports_no_engine() -> None:
    code = (
        "import sys\nfrom plastibench.cli.main import main\n"
        "try: main(['sweep', '--help'])\n"
        "except SystemExit: print({'ray', 'submitit', 'torch', 'fsspec'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.endswith("set()\n") and "--submit-only" in said


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("4:00:00", 240), ("0:00:30", 1), ("2-01:00:00", 2940), ("0", 0), ("soon", 0)]
)
def test_times_are_read_as_slurm_does(text: str, minutes: int) -> None:
    if minutes:
        assert _minutes(text) == minutes
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            _minutes(text)


def test_on_a_cluster_gpus_decide_the_device() -> None:
    spec = RunSpec.make("cl-digits", "mlp", device="auto")
    args = argparse.Namespace(engine="slurm", gpus=None)
    assert [each.run.device for each in resolve_devices_for(args, [spec])] == ["cpu"]
    on_gpu = replace(spec, run=replace(spec.run, device="cuda"))  # a login node may have none
    with pytest.raises(UserError, match="add --gpus"):
        resolve_devices_for(args, [on_gpu])
    args.gpus = 1.0
    assert [each.run.device for each in resolve_devices_for(args, [spec, on_gpu])] == ["cuda", "cuda"]


@pytest.mark.slow
def test_status_shows_every_run_without_changing_a_file(say: Callable[..., Any], sweep: Path, tmp_path: Path) -> None:
    said = say("sweep", sweep, "--status", "--runs-dir", tmp_path / "r")
    assert said.status == 0 and "0 of 2 complete" in said.out and not (tmp_path / "r").exists()
    assert say("sweep", sweep, "--jobs", 1, "--runs-dir", tmp_path / "r").status == 1
    said = say("sweep", sweep, "--status", "--runs-dir", tmp_path / "r")
    lines = [line.split(maxsplit=2) for line in said.out.splitlines()]
    assert ["complete", "none·lr=0.003·s0"] in lines and lines[-1][:2] == ["1", "of"]
    assert any(line[:2] == ["failed", "none·lr=1e+30·s0"] and "finite" in line[2] for line in lines)


def test_fail_fast_ends_runs_that_follow_one_another(say: Callable[..., Any], tmp_path: Path) -> None:
    words = ["run", "relabel-digits", "--agent", "mlp", "--agent.lr", "1e30", "--env.tasks", 2, "--env.train-size", 40]
    words += ["--env.epochs", 1, "--seed", "0..2", "--jobs", 1, "--device", "cpu", "--runs-dir", tmp_path]
    said = say(*words, "--fail-fast")
    assert said.status == 1 and said.err.count("not finite") == 1 and "stopped; run the same command" in said.err
    assert say(*words).err.count("not finite") == 3
