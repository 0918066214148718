"""The engine for a Slurm cluster: job arrays, submitted with submitit, which continue after preemption and timeouts.

Slurm sends SIGUSR2 some time before the time limit. submitit then calls :meth:`SlurmRun.checkpoint`, which stops the
run, and requeues the job. Files of the jobs are in ``.slurm`` in the folder of runs; submitit loads pickles from there,
so nobody else may write to it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench.config.errors import RunError, UserError
from plastibench.results.run_folder import read_spec, run_folder
from plastibench.sweeps.jobs import Job, RunArguments, end, startable
from plastibench.sweeps.remote_run import STOPPED, RemoteRun, make_run, observe, observe_end
from plastibench.training.failure import FAILURE_FILE
from plastibench.utils import atomic_io

FOLDER = ".slurm"  # subfolder of the folder of runs for the jobs' files
_LARGEST_ARRAY = 1000  # jobs; Slurm's default limit is 1001
_TIMEOUTS = 1000  # number of timeouts after which a job is not requeued; every part of a run makes progress
_POLL_SECONDS = 2.0
_LATE_SECONDS = 60.0  # delay until files of other machines appear on NFS


class SlurmRun(RemoteRun):
    """The function of a Slurm job."""

    def __call__(self) -> tuple[int, list[str]]:
        """Run to the end, and write ``failure.txt`` if the run has failed."""
        status, lines = super().__call__()
        if status in STOPPED and _is_preempted():
            os.kill(os.getpid(), _requeue_signal())  # submitit requeues the job and exits
        end(Job(read_spec(self.folder / "spec.toml")), self.folder, status, lines, stopped=status in STOPPED)
        return status, lines

    def checkpoint(self) -> Any:
        """Stop the run, and return the submission of the requeued job; submitit calls this in a signal handler."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(SlurmRun(self.folder, self.words, self.variables, self.cwd))


class SlurmEngine:
    """Runs each job as a job of a Slurm array.

    A stop request cancels the jobs. Slurm gives running jobs time to checkpoint (``KillWait``). Jobs that are
    already queued or running, because an earlier command has submitted them, are followed and not submitted again.
    """

    def __init__(
        self,
        runs_dir: Path,
        arguments: RunArguments,
        *,
        jobs: int = 0,
        cpus: int = 1,
        gpus: int = 0,
        memory: float = 0.0,
        minutes: int = 60,
        options: Mapping[str, str | bool] | None = None,
        cluster: str = "slurm",
    ) -> None:
        """Set up the engine.

        Args:
            runs_dir: Folder of all runs, on storage that all machines of the cluster share.
            arguments: Arguments of every process; the data folder must also be on shared storage.
            jobs: Number of runs at a time; 0: no limit.
            cpus: CPU cores per run.
            gpus: GPUs per run on a GPU.
            memory: GB of memory per run; 0: the default of the partition.
            minutes: Time limit of a job; a run that takes longer continues in the next job.
            options: Options of ``sbatch`` by name without dashes; True for a flag.
            cluster: ``slurm``, or ``local`` to start all jobs on this machine, for a test.

        Raises:
            UserError: submitit or Slurm is not installed.
        """
        try:
            import submitit
        except ImportError as error:
            raise UserError("--engine slurm needs submitit: pip install 'plastibench[slurm]'") from error
        if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise UserError(
                "this machine has no sbatch or srun; run the command on a login node, or add --slurm cluster=local to "
                "test the jobs on this machine"
            )
        self.runs_dir, self.slots = runs_dir, jobs or 1  # at least 1: what Slurm allows is unknown
        self._arguments, self._cpus = arguments, cpus
        self._gpus, self._is_local = gpus, cluster == "local"
        self._late_seconds = 0.0 if self._is_local else _LATE_SECONDS
        self._files = runs_dir.absolute() / FOLDER
        self._submitted: dict[str, Any] = {}  # id of a run -> submitit's job, or the id of a job of an earlier command
        self._executor = submitit.AutoExecutor(
            self._files, cluster=cluster, **{f"{cluster}_max_num_timeout": _TIMEOUTS}
        )
        self._executor.update_parameters(
            name="plastibench",
            timeout_min=minutes,
            cpus_per_task=cpus,
            mem_gb=memory or None,
            slurm_array_parallelism=jobs or _LARGEST_ARRAY,
            slurm_srun_args=[f"--cpus-per-task={cpus}"],  # since Slurm 22.05, srun does not inherit it
            slurm_additional_parameters={"requeue": True, **(options or {})},
        )

    def submit(self, jobs: Sequence[Job], queued: set[str] | None = None) -> list[str]:
        """Submit all jobs that wait and are not queued yet, and return the ids of the Slurm jobs.

        Args:
            jobs: The jobs.
            queued: Ids of the jobs that wait or run; by default, Slurm is asked.

        Raises:
            RunError: Slurm has refused a job.
        """
        queued = self._queued() if queued is None else queued
        for job in jobs:
            if job.spec.id not in self._submitted and (earlier := self._earlier(job)) in (queued or ()):
                self._submitted[job.spec.id] = earlier
        new = [job for job in startable(jobs, self.runs_dir) if job.spec.id not in self._submitted]
        found: list[str] = []
        for on_gpu in (False, True):
            alike = [job for job in new if job.spec.run.device.startswith("cuda") is on_gpu]
            self._executor.update_parameters(gpus_per_node=self._gpus if on_gpu else None)
            for first in range(0, len(alike), _LARGEST_ARRAY):
                found += self._submit_array(alike[first : first + _LARGEST_ARRAY])
        return found

    def _submit_array(self, jobs: Sequence[Job]) -> list[str]:
        runs = [make_run(SlurmRun, job, self.runs_dir, self._arguments, self._cpus) for job in jobs]
        for job in jobs:  # a failure of an earlier attempt
            (run_folder(job.spec, self.runs_dir) / FAILURE_FILE).unlink(missing_ok=True)
        try:
            with self._executor.batch():
                submitted = [self._executor.submit(run) for run in runs]
        except Exception as error:  # submitit has no common class of errors
            raise RunError(f"Slurm has refused the jobs: {' '.join(str(error).split())}") from error
        for job, made in zip(jobs, submitted, strict=True):
            self._submitted[job.spec.id] = made
            job.started = time.monotonic()
            atomic_io.write_text(self._files / f"{job.spec.id}.txt", f"{made.job_id}\n")
        return [made.job_id for made in submitted]

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        """Run all waiting jobs; see :class:`plastibench.sweeps.engine.Engine`."""
        gone: dict[str, float] = {}  # id of a run -> since when Slurm does not list its job
        cancelled = False
        while left := [job for job in jobs if job.state in ("waiting", "running")]:
            if stop and not cancelled:
                self._cancel(left)
                cancelled = True
            queued = self._queued()
            if not stop:
                submitted = self.submit(left, queued)
                queued = None if queued is None else queued.union(submitted)
            for job in left:
                self._update(job, queued, gone, bool(stop))
            on_poll()
            time.sleep(_POLL_SECONDS if not self._is_local else 0.2)

    def _update(self, job: Job, queued: set[str] | None, gone: dict[str, float], stopped: bool) -> None:
        """Set the state of a job from its folder and from the jobs that Slurm lists."""
        made = self._submitted.get(job.spec.id)
        if made is None:  # another process runs it
            if stopped:
                job.state = "stopped"
            return
        observe(job, self.runs_dir)
        if queued is None or getattr(made, "job_id", made) in queued:
            gone.pop(job.spec.id, None)
            return
        if observe_end(job, self.runs_dir):
            job.seconds = time.monotonic() - job.started if job.state == "complete" else None
            return
        since = gone.setdefault(job.spec.id, time.monotonic())
        if stopped:
            job.state = "stopped"
        elif job.state == "running":  # by another process
            gone.pop(job.spec.id)
        elif time.monotonic() - since >= self._late_seconds:
            reason = (
                f"Slurm job {getattr(made, 'job_id', made)} has ended without a result; see its log in {self._files}"
            )
            end(job, run_folder(job.spec, self.runs_dir), 1, [reason], stopped=False)
            job.message = reason

    def _cancel(self, jobs: Sequence[Job]) -> None:
        made = [self._submitted[job.spec.id] for job in jobs if job.spec.id in self._submitted]
        if self._is_local:
            for job in made:
                job.cancel()
        elif made:
            _output("scancel", *(str(getattr(job, "job_id", job)) for job in made))

    def _earlier(self, job: Job) -> str:
        """Id of the Slurm job that an earlier command has submitted for a run; empty if there is none."""
        try:
            return (self._files / f"{job.spec.id}.txt").read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def _queued(self) -> set[str] | None:
        """The ids of my jobs that wait or run; None if unknown, since Slurm may be busy.

        ``sacct``, which submitit asks, needs accounting, and calls a preempted job unfinished even if it was cancelled.
        """
        if self._is_local:
            return {job.job_id for job in self._submitted.values() if not isinstance(job, str) and not job.done()}
        said = _output("squeue", "--me", "--noheader", "--array", "--format=%i")
        return None if said is None else set(said.split())


def _output(*command: str) -> str | None:
    """The output of a command of Slurm; None if it has failed."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else None
    return None


def _is_preempted() -> bool:
    """Whether this job was stopped, but not cancelled: Slurm sends SIGTERM in both cases, and then ends the job."""
    from submitit import JobEnvironment

    environment = JobEnvironment()
    if environment.cluster != "slurm":
        return False
    return (_output("squeue", "--noheader", "--format=%T", "--jobs", environment.job_id) or "").strip() == "RUNNING"


def _requeue_signal() -> int:
    from submitit import JobEnvironment

    return int(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
