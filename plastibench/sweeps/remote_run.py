"""A run on another machine: the process that runs it there, and its state as seen from here.

Ray and Slurm start a :class:`RemoteRun` on a machine that shares the folder of runs. It starts ``plastibench resume
ID`` in a separate process, so a run has the same environment, threads and exit status with every engine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plastibench.results.files import read_result_if_complete
from plastibench.results.run_folder import run_folder
from plastibench.sweeps.jobs import LINES_KEPT, PIPE_SECONDS, Job, RunArguments
from plastibench.sweeps.run_folders import recorded_progress
from plastibench.training.failure import FAILURE_FILE, failure_line
from plastibench.utils.folder_lock import is_locked
from plastibench.utils.stop_signals import SIGNALS

STOPPED = (130, *(-number for number in SIGNALS))  # exit statuses of a run that a signal has stopped
_POLL_SECONDS = 0.2
_TRACKERS = ("WANDB_", "MLFLOW_", "TRACKIO_")  # environment variables that configure trackers


@dataclass
class RemoteRun:
    """The process of one run, started and watched by a worker; can be pickled until it is called.

    Attributes:
        folder: Folder of the run.
        words: Arguments of ``plastibench``.
        variables: Environment variables besides those of the worker.
        cwd: Working directory, if it exists on the worker: plugins may be modules there.
    """

    folder: Path
    words: Sequence[str]
    variables: Mapping[str, str]
    cwd: Path
    _pid: int = field(default=0, init=False)

    def __call__(self) -> tuple[int, list[str]]:
        """Run to the end, or until a KeyboardInterrupt; return the exit status and the last lines of output."""
        command = [sys.executable, "-m", "plastibench", *self.words, "--stop-with-parent", str(os.getpid())]
        lines: list[str] = []
        try:
            process = subprocess.Popen(
                command,
                cwd=self.cwd if self.cwd.is_dir() else None,
                env={**os.environ, **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C in a terminal must not reach it
            )
            self._pid = process.pid
            reader = threading.Thread(target=_copy_output, args=(process, lines), daemon=True)
            reader.start()
            while process.poll() is None:  # wait() holds a lock, and stop() may be called by a signal handler
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:  # Ray cancels a task in this way
            self.stop()
            process.wait()
        reader.join(PIPE_SECONDS)
        return process.returncode, lines

    def stop(self) -> None:
        """Ask the process to checkpoint and exit, and wait until it has ended; a signal handler may call this.

        The signal is SIGINT because a scheduler may have sent SIGTERM or SIGUSR2 already, and a second signal of the
        same kind would end the process before it has saved its state.
        """
        if self._pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGINT)
                os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)


def _copy_output(process: subprocess.Popen[str], lines: list[str]) -> None:
    """Copy the output of a process to the log of the worker, and keep its last lines."""
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        lines.append(line.rstrip())
        del lines[:-LINES_KEPT]


def make_run(kind: type[RemoteRun], job: Job, runs_dir: Path, arguments: RunArguments, cpus: int) -> RemoteRun:
    """Make the run of a job, with paths that are valid in every working directory.

    Args:
        kind: Class of the run.
        job: The job.
        runs_dir: Folder of all runs.
        arguments: Arguments for its process.
        cpus: CPU cores of the run.
    """
    folder = run_folder(job.spec, runs_dir.absolute())
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cpus))}  # Ray and Slurm set it themselves
    variables |= {name: value for name, value in os.environ.items() if name.startswith(_TRACKERS)}
    return kind(folder, arguments.absolute().words([folder]), variables, Path.cwd())


def observe(job: Job, runs_dir: Path) -> None:
    """Set the state of a job to running or waiting, and its progress, from the files in its folder."""
    folder = run_folder(job.spec, runs_dir)
    with contextlib.suppress(OSError):
        os.listdir(folder)  # NFS reports files of other machines late unless their folder is read
    if not is_locked(folder):
        job.state = "waiting"
        return
    if job.state != "running":
        job.state, job.started = "running", time.monotonic()
    fraction, position = recorded_progress(folder)
    if fraction is not None:
        job.report(fraction, f"{position}, {fraction:.0%}")


def observe_end(job: Job, runs_dir: Path) -> bool:
    """Check the files of a job for its end; if it has ended, set its state to complete or failed and return True."""
    folder = run_folder(job.spec, runs_dir)
    if is_locked(folder):
        return False
    if read_result_if_complete(folder) is not None:
        job.state = "complete"
    elif (folder / FAILURE_FILE).exists():
        job.state, job.message = "failed", failure_line(folder)
    else:
        return False
    return True
