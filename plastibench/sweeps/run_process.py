"""The process of a run, or of several small runs, forked from a server that has imported PyTorch and plastibench.

Most of the time of a short run is spent on imports. The server (``forkserver`` of the standard library) imports
everything once and then forks a process in milliseconds. Each run, or each stack of small runs, has its own process: a
crash, exhausted memory or changed global state does not affect other runs, and the memory is freed at the end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from plastibench.config.errors import RunError
from plastibench.results.run_folder import run_folder
from plastibench.sweeps.jobs import LINES_KEPT, PIPE_SECONDS, Job, end, end_together
from plastibench.sweeps.run_server import start_server
from plastibench.utils.progress import PIPE, parse_pipe_line

_ATTEMPTS = 3  # attempts to start a process
_SERVER_LOST = 255  # exit status that multiprocessing reports when the server has died


class RunProcess:
    """The process of a running job, or of several that are stacked."""

    def __init__(
        self, jobs: Sequence[Job], words: Sequence[str], variables: Mapping[str, str], gpu: int | None
    ) -> None:
        """Start the process.

        Args:
            jobs: The jobs; their states become ``running``.
            words: Arguments of ``plastibench`` that run them.
            variables: Environment variables besides those of this process.
            gpu: The GPU that the variables assign; only stored for the caller.
        """
        self.gpu = gpu
        self._jobs = {job.spec.id: job for job in jobs}
        self._asked_to_stop = False
        self._lines: list[str] = []
        reader, writer = multiprocessing.Pipe(duplex=False)
        for job in jobs:
            job.state, job.started = "running", time.monotonic()
        self._process = _start(words, {**os.environ, **variables, PIPE: "1"}, writer)
        writer.close()  # so that reading ends when the process does
        self._reader = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reader.start()

    @property
    def sentinel(self) -> int:
        """A handle for ``multiprocessing.connection.wait`` that is ready when the process has ended."""
        return int(self._process.sentinel)

    def _read(self, reader: Connection) -> None:
        # Libraries may write to stderr in another encoding.
        with open(os.dup(reader.fileno()), encoding="utf-8", errors="replace", newline="\n") as stream:
            reader.close()
            for line in stream:
                if progress := parse_pipe_line(line):
                    if (job := self._jobs.get(progress.run)) is not None:
                        job.report(progress.fraction, progress.text)
                    continue
                for job in self._jobs.values() if len(self._jobs) == 1 else ():
                    job.message = line.strip() or job.message
                self._lines = [*self._lines[-LINES_KEPT:], line.rstrip()]

    def ask_to_stop(self) -> None:
        """Ask the process once to checkpoint and exit; a second signal would kill it before it has saved."""
        if not self._asked_to_stop and self._process.exitcode is None:
            self._process.terminate()
            self._asked_to_stop = True

    def poll(self, runs_dir: Path) -> bool:
        """Return whether the process has ended; then its jobs have their final states, or ``waiting`` to run again."""
        status = self._process.exitcode
        if status is None:
            return False
        if status == _SERVER_LOST:
            self._end_orphan()
        self._reader.join(PIPE_SECONDS)
        jobs = [*self._jobs.values()]
        folders = [run_folder(job.spec, runs_dir) for job in jobs]
        if len(jobs) == 1:
            end(jobs[0], folders[0], status, self._lines, self._asked_to_stop)
        else:
            end_together(jobs, folders, status, self._asked_to_stop)
        return True

    def _end_orphan(self) -> None:
        """Ask a process whose server has died to checkpoint and exit; its exit status cannot be known."""
        self._lines.append("the process that starts the runs was killed; run the same command to continue")
        for job in self._jobs.values():
            job.message = self._lines[-1]
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)


def _start(words: Sequence[str], variables: dict[str, str], output: Connection) -> Any:
    """Start the process that runs a command; if the server was killed, start a new one."""
    known = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    failures = 0
    while True:
        start_server()
        process = context.Process(target=_run_command, args=(list(words), variables, output))
        try:
            process.start()
            return process
        except (EOFError, OSError) as error:  # the server was killed before it could fork
            failures += 1
            if failures == _ATTEMPTS:
                reason = f"{type(error).__name__}: {error}"
                raise RunError(f"cannot start a process ({reason}); the machine may be out of memory") from error
            time.sleep(0.1)


def _run_command(words: list[str], variables: dict[str, str], output: Connection) -> None:
    """Do what ``python -m plastibench WORDS`` does, with stderr going to a pipe; this is the forked process."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that Ctrl-C does not reach it
    os.dup2(output.fileno(), 2)
    output.close()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    if threads := variables.get("OMP_NUM_THREADS", "").partition(",")[0]:
        import torch

        torch.set_num_threads(max(1, int(threads)))  # OpenMP has read the variable in the server
    sys.argv = ["plastibench", *words]
    runpy.run_module("plastibench", run_name="__main__", alter_sys=True)
