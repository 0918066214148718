"""Processes of runs: forked from one server, and as separate from each other as separate commands."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from plastibench.config.spec import RunSpec
from plastibench.sweeps.engine import run_all
from plastibench.sweeps.jobs import Job, RunArguments
from plastibench.sweeps.local_engine import LocalEngine
from plastibench.training.runner import run
from tests.support.runs import assert_same_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

NOTES = """
import json, os, pathlib, sys
modules = [name for name in ("torch._dynamo", "plastibench.training.runner") if name in sys.modules]
pathlib.Path(os.environ["NOTES"], sys.argv[2]).write_text(json.dumps([os.getpid(), os.getppid(), modules]))
"""
# The run with seed 0 changes whatever a process has only one of; the run with seed 1 ends its process.
VANDAL = """
import os, random, signal, sys, tempfile
import numpy, torch
if "_s0_" in sys.argv[2]:
    random.seed(0), numpy.random.seed(0), torch.manual_seed(123)
    torch.set_default_dtype(torch.float64)
    torch.set_flush_denormal(True)
    torch.backends.mkldnn.enabled = False
    os.environ.update(PLASTIBENCH_DATA="nowhere", TMPDIR="/nowhere")
    os.chdir(tempfile.mkdtemp())
    raise SystemExit(5)
if "_s1_" in sys.argv[2]:
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def specs_of(*kinds: tuple[str, str, str, dict[str, object]], seeds: int = 1) -> list[RunSpec]:
    return [
        RunSpec.make(env, agent, method, device="cpu", seed=seed, env_options=SIZES[env], agent_options=options)
        for seed in range(seeds)
        for env, agent, method, options in kinds
    ]


SIZES = {
    "cl-digits": {"epochs": 2, "train_size": 40, "stop_after": 3},
    "relabel-digits": {"epochs": 1, "train_size": 40, "switches": 2},
    "rl-cartpole": {"steps": 300, "evaluation_episodes": 1},
}
VIT = ("cl-digits", "vit-nano", "rnr", {"depth": 1, "dim": 16, "dropout": 0.2, "batch_size": 8})
MLP = ("relabel-digits", "mlp", "none", {"width": 8})
DQN = ("rl-cartpole", "dqn-mlp", "none", {"hidden": (8,), "learning_starts": 100})


def sweep(specs: list[RunSpec], folder: Path, slots: int = 1, plugin: str = "") -> list[Job]:
    """Run specs with a plugin of this content."""
    (folder / "plugin.py").write_text(plugin)
    engine = LocalEngine(
        slots, folder / "r", RunArguments(folder, [str(folder / "plugin.py")] if plugin else [], threads=1)
    )
    return run_all(specs, engine, folder / "r", quiet=True)


def test_runs_of_a_sweep_are_bit_identical_to_single_runs(tmp_path: Path) -> None:
    specs = specs_of(VIT, DQN, MLP)
    jobs = sweep(specs, tmp_path, slots=2)
    assert [job.state for job in jobs] == ["complete"] * 3
    for spec in specs:
        run(spec, runs_dir=tmp_path / "single", data_dir=tmp_path, quiet=True, threads=1)
        assert_same_run(tmp_path / "single" / spec.id, tmp_path / "r" / spec.id)


def test_runs_have_processes_of_their_own_in_which_pytorch_is_already_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path))
    specs = specs_of(MLP, seeds=2)
    assert all(job.state == "complete" for job in sweep(specs, tmp_path, plugin=NOTES))
    notes = [json.loads((tmp_path / spec.id).read_text()) for spec in specs]
    assert len({pid for pid, _, _ in notes}) == 2
    assert len({parent for _, parent, _ in notes}) == 1 and notes[0][1] != os.getpid()
    assert all(modules == ["torch._dynamo", "plastibench.training.runner"] for _, _, modules in notes)


def test_what_one_run_does_to_its_process_affects_no_other(tmp_path: Path) -> None:
    specs = specs_of(MLP, seeds=3)
    jobs = sweep(specs, tmp_path, plugin=VANDAL)
    assert [job.state for job in jobs] == ["failed", "failed", "complete"]
    assert "SIGSEGV" in jobs[1].message
    run(specs[2], runs_dir=tmp_path / "single", data_dir=tmp_path, quiet=True, threads=1)
    assert_same_run(tmp_path / "single" / specs[2].id, tmp_path / "r" / specs[2].id)


def test_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    first, second = specs_of(MLP, seeds=2)
    sweep([first], tmp_path)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert [job.state for job in sweep([first, second], tmp_path)] == ["complete"] * 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_gets_the_threads_that_its_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    note = f"import pathlib, torch; pathlib.Path({str(tmp_path)!r}, 'note').write_text(str(torch.get_num_threads()))"
    sweep(specs_of(MLP), tmp_path, plugin=note)
    assert (tmp_path / "note").read_text() == str(threads)
    assert torch.get_num_threads() == 1
