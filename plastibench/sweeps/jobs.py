"""Jobs: runs and their states, as set by an engine or read from their folders."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from plastibench.config.errors import RunError, UserError
from plastibench.config.short_names import short_names, tables_of
from plastibench.config.spec import RunSpec
from plastibench.results.files import read_result_if_complete
from plastibench.results.run_folder import clear, find_result, run_folder
from plastibench.training.failure import FAILURE_FILE as FAILURE_FILE
from plastibench.training.failure import failure_line
from plastibench.utils import atomic_io, digests, provenance
from plastibench.utils.folder_lock import IN_USE, is_locked, lock_folder

LINES_KEPT = 20  # last lines of a process's output that go to failure.txt
PIPE_SECONDS = 5.0  # how long to read the output of a process that has ended; its children may keep the pipe open
State = Literal["waiting", "running", "complete", "failed", "stopped"]
StoredState = Literal["complete", "damaged", "failed", "interrupted", "waiting"]


@dataclass
class Job:
    """A run and its state.

    Attributes:
        spec: What to run.
        state: Its state, according to the engine.
        name: Short name of the run that says how it differs from the others.
        message: Its latest progress or line of output, or why it failed.
        progress: Fraction done of the work that was left when the job started, 0 to 1.
        started: Start time by the monotonic clock, if this engine has started it.
        seconds: Duration, if this engine has completed it.
        is_invalid: Whether it failed because its input was wrong.
        alone: Whether it must not share a process with other jobs, because such a process has crashed.
    """

    spec: RunSpec
    state: State = "waiting"
    name: str = ""
    message: str = ""
    progress: float = 0.0
    started: float = 0.0
    seconds: float | None = None
    is_invalid: bool = False
    alone: bool = False
    _first: float | None = None

    def report(self, fraction: float, message: str) -> None:
        """Store the progress of the run: the fraction of the run that is done, and a text.

        The first call defines what was left, since a resumed run does not start at 0.
        """
        self._first = fraction if self._first is None else self._first
        self.progress = (fraction - self._first) / (1 - self._first) if self._first < 1 else 0.0
        self.message = message


@dataclass(frozen=True)
class RunArguments:
    """Arguments for the process of a run, besides the folder of its spec.

    Attributes:
        data_dir: Folder of datasets.
        plugins: Modules and files to import first.
        threads: CPU threads; 0: one for a small network, all that the process may use for a large one.
        extra: Further arguments of ``plastibench resume``.
    """

    data_dir: Path
    plugins: Sequence[str] = ()
    threads: int = 0
    extra: Sequence[str] = ()

    def words(self, folders: Sequence[Path]) -> list[str]:
        """The arguments of ``plastibench`` that run the specs in folders with the same parent."""
        words = ["resume", *(folder.name for folder in folders), "--for-command", provenance.command()]
        words += ["--runs-dir", str(folders[0].parent), "--data-dir", str(self.data_dir)]
        words += ["--threads", str(self.threads)] if self.threads else []
        return [*words, *self.extra, *(word for plugin in self.plugins for word in ("--plugin", plugin))]

    def absolute(self) -> RunArguments:
        """The same arguments, valid in every working directory."""
        paths = [str(Path(plugin).absolute()) if Path(plugin).is_file() else plugin for plugin in self.plugins]
        return replace(self, data_dir=self.data_dir.absolute(), plugins=paths)


def name_jobs(specs: Sequence[RunSpec]) -> list[Job]:
    """Make a waiting job for each spec, with a short name that says how it differs from the others."""
    names = short_names([tables_of(spec) for spec in specs])
    return [Job(spec, name=name) for spec, name in zip(specs, names, strict=True)]


def prepare(specs: Sequence[RunSpec], runs_dir: Path, force: bool = False) -> list[Job]:
    """Write the spec of every run that has no folder yet, so that ``plastibench resume ID`` can run it.

    Args:
        specs: The runs.
        runs_dir: Folder of all runs.
        force: Delete what the runs have written, so that they start from the beginning.

    Raises:
        UserError: A folder cannot be created, contains another run, or is in use by another process.
    """
    jobs = name_jobs(specs)
    for job in jobs:
        folder = run_folder(job.spec, runs_dir)
        if force and folder.is_dir():
            with lock_folder(folder):
                clear(folder)
        if find_result(job.spec, runs_dir) is not None:
            job.state = "complete"
        elif not (folder / "spec.toml").exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot use {folder}: {reason}; choose another folder with --runs-dir") from error
            atomic_io.write_text(folder / "spec.toml", digests.signed(job.spec.to_toml()))
    return jobs


def startable(jobs: Sequence[Job], runs_dir: Path) -> list[Job]:
    """Return the waiting jobs that no other process is running; mark those that another process has completed."""
    found = []
    for job in jobs:
        if job.state != "waiting":
            continue
        if is_locked(run_folder(job.spec, runs_dir)):
            job.message = IN_USE
        elif job.message == IN_USE and find_result(job.spec, runs_dir) is not None:
            job.state = "complete"
        else:
            found.append(job)
    return found


def end(job: Job, folder: Path, status: int, lines: Sequence[str], stopped: bool) -> None:
    """Set the state of a job whose process has ended, and write ``failure.txt`` if it has failed.

    If another process is running the job, it waits for that process.

    Args:
        job: The job.
        folder: The folder of its run.
        status: Exit status, or minus the signal.
        lines: The last lines of its output.
        stopped: Whether the process was asked to stop.
    """
    file = folder / FAILURE_FILE
    if status == 0:
        job.state, job.seconds = "complete", time.monotonic() - job.started
    elif status == 130 or stopped:
        job.state = "stopped"
    elif lines and IN_USE in lines[-1]:
        job.state, job.message = "waiting", IN_USE
        return
    else:
        job.state, job.is_invalid, reasons = "failed", status == 2, [*lines]
        if status < 0:
            hint = "; the machine may have run out of memory" if status == -signal.SIGKILL else ""
            job.message = f"killed by {signal.Signals(-status).name}{hint}"
            reasons.append(job.message)
        reason = "\n".join(reasons) or f"exit status {status}"
        try:
            if not file.exists():  # the run writes it, with a traceback, unless its process was killed
                atomic_io.write_text(file, f"{reason}\n")
        except RunError as error:  # the folder may be gone or the disk full; the other jobs go on
            job.message = f"{job.message or reason} ({error})"
        return
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def end_together(jobs: Sequence[Job], folders: Sequence[Path], status: int, stopped: bool) -> None:
    """Set the states of jobs whose common process has ended, from the files in their folders.

    If the process has crashed, each of its unfinished jobs runs again in its own process.

    Args:
        jobs: The jobs.
        folders: The folders of their runs.
        status: Exit status, or minus the signal.
        stopped: Whether the process was asked to stop.
    """
    for job, folder in zip(jobs, folders, strict=True):
        state = stored_state(folder)
        if state == "complete":
            job.state, job.seconds = "complete", time.monotonic() - job.started
        elif state == "failed":
            job.state, job.is_invalid, job.message = "failed", status == 2, failure_line(folder)
        elif stopped or status == 130:
            job.state = "stopped"
        else:
            job.state, job.alone, job.message = "waiting", True, ""


def stored_state(folder: Path) -> StoredState:
    """The state of a run by the files in its folder: complete, damaged, failed, interrupted or waiting."""
    if read_result_if_complete(folder) is not None:
        return "complete"
    files: dict[str, StoredState] = {"result.json": "damaged", FAILURE_FILE: "failed", "metrics.csv": "interrupted"}
    return next((state for file, state in files.items() if (folder / file).exists()), "waiting")
