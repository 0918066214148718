"""Ray and Slurm: the same results as on one machine, bit for bit, also if a worker is killed or a job is preempted.

A run with seed 0 waits in its second task until its first process has received a signal to stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.results.files import load_results
from plastibench.results.run_folder import run_folder
from plastibench.sweeps.engine import FAILED, Engine, run_all
from plastibench.sweeps.jobs import FAILURE_FILE, Job, RunArguments, prepare
from plastibench.sweeps.remote_run import RemoteRun, make_run, observe, observe_end
from plastibench.training.runner import run
from plastibench.utils.folder_lock import lock_folder
from tests.support.runs import assert_same_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")

HOLD = """
import os, pathlib, signal, sys, time
from plastibench.training.supervised import SupervisedTrainer
from plastibench.utils.stop_signals import SIGNALS
notes = pathlib.Path(__file__).parent
advance = SupervisedTrainer.advance

def advance_after_the_interruption(self):
    held = notes / "held"
    if "_s0_" in sys.argv[2] and self.task == 1 and not held.exists():
        (notes / "new").write_text(f"{os.getpid()} {os.getppid()}")
        os.replace(notes / "new", held)
        while not any(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS):  # since the first one
            time.sleep(0.05)
    advance(self)

SupervisedTrainer.advance = advance_after_the_interruption
"""
FAIL = "import sys\nif '_s0_' in sys.argv[2]: raise ValueError('broken plugin')\n"


def specs_of(seeds: int = 2) -> list[RunSpec]:
    """Runs of three short tasks, whose dropout makes the state of a generator part of the result."""
    return [
        RunSpec.make(
            "relabel-digits",
            "mlp",
            "reset",
            device="cpu",
            seed=seed,
            env_options={"epochs": 2, "train_size": 80, "tasks": 3},
            agent_options={"width": 8, "batch_size": 8},
        )
        for seed in range(seeds)
    ]


def plugin(folder: Path, text: str = HOLD) -> list[str]:
    (folder / "plugin.py").write_text(text)
    return [str(folder / "plugin.py")]


def interrupt_once(folder: Path, interrupt: Callable[[int, int], None]) -> Callable[[], None]:
    """For ``on_poll``: once, when a run waits, call a function with the ids of its process and of the parent."""
    interrupted: list[int] = []

    def on_poll() -> None:
        if (folder / "held").exists() and not interrupted:
            process, parent = map(int, (folder / "held").read_text().split())
            interrupted.append(process)
            interrupt(process, parent)

    return on_poll


def run_with(engine: Engine, specs: Sequence[RunSpec], runs_dir: Path, on_poll: Callable[[], None]) -> list[Job]:
    jobs = prepare(specs, runs_dir)
    engine.run(jobs, stop=[], on_poll=on_poll)
    return jobs


def assert_same_as_local(specs: Sequence[RunSpec], folder: Path, runs_dir: Path) -> None:
    """Compare with runs in this process; tests/sweeps/test_run_process.py compares those with the local engine."""
    for spec in specs:
        run(spec, runs_dir=folder / "local", data_dir=folder, quiet=True, threads=1)
        assert_same_run(folder / "local" / spec.id, runs_dir / spec.id)


def ray_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, plugins: Sequence[str] = (), **options: Any) -> Engine:
    pytest.importorskip("ray")
    from plastibench.sweeps import ray_engine

    monkeypatch.setattr(ray_engine, "cores", lambda: 2)
    for _ in range(4):  # Ray gives up if its processes take more than 30 seconds to start
        with contextlib.suppress(UserError):
            return ray_engine.RayEngine(folder / "r", RunArguments(folder, plugins, threads=1), **options)
    return ray_engine.RayEngine(folder / "r", RunArguments(folder, plugins, threads=1), **options)


def slurm_engine(folder: Path, plugins: Sequence[str] = (), **options: Any) -> Engine:
    """The engine for Slurm with submitit's executor for one machine."""
    pytest.importorskip("submitit")
    from plastibench.sweeps.slurm_engine import SlurmEngine

    return SlurmEngine(folder / "r", RunArguments(folder, plugins, threads=1), cluster="local", **options)


@pytest.mark.slow
def test_ray_continues_the_run_of_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ray_engine(tmp_path, monkeypatch, plugins=plugin(tmp_path))
    killed: list[int] = []
    progress: list[str] = []
    jobs: list[Job] = []

    def kill(process: int, parent: int) -> None:
        progress.extend(job.state for job in jobs)
        os.kill(parent, signal.SIGKILL)
        killed.append(parent)

    interrupt = interrupt_once(tmp_path, kill)
    specs = specs_of(3)
    jobs += prepare(specs, tmp_path / "r")
    engine.run(jobs, stop=[], on_poll=interrupt)
    assert killed and progress[0] == "running"
    assert [job.state for job in jobs] == ["complete"] * 3
    result = load_results(tmp_path / "r")[0]
    assert result.id == specs[0].id and len(result.origin.sessions or ()) == 2  # from its checkpoint
    assert_same_as_local(specs, tmp_path, tmp_path / "r")


@pytest.mark.slow
def test_stopping_ray_checkpoints_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ray_engine(tmp_path, monkeypatch, plugins=plugin(tmp_path), jobs=1)
    specs = specs_of()
    stop: list[int] = []
    jobs = prepare(specs, tmp_path / "r")
    engine.run(jobs, stop=stop, on_poll=interrupt_once(tmp_path, lambda *_: stop.append(signal.SIGINT)))
    assert [job.state for job in jobs] == ["stopped"] * 2
    assert (tmp_path / "r" / specs[0].id / "checkpoint.pt").exists()
    assert not list((tmp_path / "r").glob(f"*/{FAILURE_FILE}"))
    for spec in specs:
        run(spec, runs_dir=tmp_path / "r", data_dir=tmp_path, quiet=True, threads=1)
    assert_same_as_local(specs, tmp_path, tmp_path / "r")


@pytest.mark.slow
def test_a_run_that_fails_in_ray_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ray_engine(tmp_path, monkeypatch, plugins=plugin(tmp_path, FAIL))
    jobs = run_all(specs_of(), engine, tmp_path / "r", quiet=True)
    assert [job.state for job in jobs] == ["failed", "complete"]
    assert "broken plugin" in jobs[0].message
    assert "broken plugin" in (tmp_path / "r" / jobs[0].spec.id / FAILURE_FILE).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempted", "killed"])
def test_slurm_requeues_a_preempted_job(tmp_path: Path, how: str) -> None:
    """With submitit's executor for one machine; the run continues from its checkpoint."""
    engine = slurm_engine(tmp_path, plugins=plugin(tmp_path))
    from submitit import JobEnvironment

    def preempt(process: int, worker: int) -> None:
        os.kill(worker, getattr(signal, f"SIG{JobEnvironment.USR_SIG}") if how == "preempted" else signal.SIGKILL)

    specs = specs_of(1)
    (job,) = run_with(engine, specs, tmp_path / "r", interrupt_once(tmp_path, preempt))
    if how == "killed":  # only Slurm itself starts such a job again
        assert job.state == "failed" and "has ended without a result" in job.message
        return
    assert job.state == "complete" and job.seconds is not None
    result = load_results(tmp_path / "r")[0]
    assert len(result.origin.sessions or ()) == 2
    assert_same_as_local(specs, tmp_path, tmp_path / "r")


STUB = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--runs-dir") + 1]) / sys.argv[2]
stop = []
for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, _: stop.append(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
if (folder / "signals").exists():
    sys.exit("second attempt with " + os.environ["OMP_NUM_THREADS"] + " threads")
(folder / "held").write_text(f"{os.getpid()} {os.getppid()}")
while not stop:
    time.sleep(0.02)
(folder / "signals").write_text(str(stop))
sys.exit(130)
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``python -m plastibench`` is a script that waits for a signal, and fails when it runs again."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "plastibench.py").write_text(STUB)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (job,) = prepare(specs_of(1), tmp_path / "r")
    return run_folder(job.spec, tmp_path / "r")


def wait_for(file: Path, job: Any) -> str:
    """The content of a file that a job of submitit writes."""
    while not file.exists() or not file.read_text():
        assert not job.done(), "the job has ended without writing the file"
        time.sleep(0.02)
    return file.read_text()


@pytest.mark.slow
def test_a_requeued_slurm_job_continues_and_its_failure_is_recorded(tmp_path: Path, stub: Path) -> None:
    submitit = pytest.importorskip("submitit")
    from plastibench.sweeps.slurm_engine import SlurmRun

    spec = specs_of(1)[0]
    run = make_run(SlurmRun, Job(spec), tmp_path / "r", RunArguments(tmp_path), 1)
    run.cwd = tmp_path / "cwd"
    job = submitit.LocalExecutor(tmp_path / "jobs").submit(run)
    _, worker = wait_for(stub / "held", job).split()
    os.kill(int(worker), getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}"))
    assert job.result() == (1, ["second attempt with 3 threads"])
    assert (stub / "signals").read_text() == f"[{int(signal.SIGINT)}]"
    assert (stub / FAILURE_FILE).read_text() == "second attempt with 3 threads\n"


def test_a_cancelled_run_stops_its_process(tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a KeyboardInterrupt in the task."""
    run = make_run(RemoteRun, Job(specs_of(1)[0]), tmp_path / "r", RunArguments(tmp_path), 1)
    run.cwd = tmp_path / "cwd"

    def interrupt_when_it_runs(_: float) -> None:
        if (stub / "held").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("plastibench.sweeps.remote_run.time.sleep", interrupt_when_it_runs)
    assert run() == (130, [])
    assert (stub / "signals").read_text() == f"[{int(signal.SIGINT)}]"


def test_states_and_progress_are_read_from_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    spec = specs_of(1)[0]
    (job,) = prepare([spec], tmp_path)
    folder = tmp_path / spec.id
    observe(job, tmp_path)
    assert job.state == "waiting" and not observe_end(job, tmp_path)
    with lock_folder(folder):
        (folder / "metrics.csv").write_text("step,task,epoch,metric,value\n0,1,1,accuracy,0.5\n")
        observe(job, tmp_path)
        assert (job.state, job.message, job.progress) == ("running", "task 2/3, 50%", 0.0)
        (folder / "metrics.csv").write_text("step,task,epoch,metric,value\n0,2,1,accuracy,0.5\n")
        observe(job, tmp_path)
        assert job.progress == pytest.approx(2 / 3) and "83%" in job.message
        assert not observe_end(job, tmp_path)
    (folder / FAILURE_FILE).write_text("Traceback\nplastibench: it broke\n")
    assert observe_end(job, tmp_path) and (job.state, job.message) == ("failed", "it broke")


class FailingEngine:
    """The first job fails; the others go on until they are asked to stop."""

    slots = 1

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        jobs[0].state = "failed"
        on_poll()
        for job in jobs[1:]:
            job.state = "stopped" if stop else "complete"
        on_poll()


@pytest.mark.parametrize("fail_fast", [False, True])
def test_fail_fast_stops_the_other_runs(tmp_path: Path, fail_fast: bool) -> None:
    stop: list[int] = []
    jobs = run_all(specs_of(3), FailingEngine(), tmp_path, stop=stop, quiet=True, fail_fast=fail_fast)
    assert [job.state for job in jobs] == ["failed", *["stopped" if fail_fast else "complete"] * 2]
    assert stop == ([FAILED] if fail_fast else [])
