"""The engine for one machine: a bounded number of processes, spread over its GPUs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plastibench.results.run_folder import run_folder
from plastibench.sweeps.jobs import FAILURE_FILE, Job
from plastibench.utils import atomic_io, provenance
from plastibench.utils.runtime import GPU_SHARE

_POLL_SECONDS = 0.5
_PIPE_SECONDS = 5.0  # how long to read the output of a process that has ended; its children may keep the pipe open
_LINES_KEPT = 20  # of the output of a process, for failure.txt


class LocalEngine:
    """Runs each job in a process of its own on this machine.

    Ctrl-C reaches this process only; it then asks the others to checkpoint.
    """

    def __init__(
        self, slots: int, runs_dir: Path, data_dir: Path, plugins: Sequence[str] = (), threads: int = 0
    ) -> None:
        """Set up the engine.

        Args:
            slots: Number of processes at a time.
            runs_dir: Folder of all runs.
            data_dir: Folder of datasets.
            plugins: Modules and files that every process imports first.
            threads: CPU threads per process; 0: one for a small network, cores / slots for a large one.
        """
        self.slots, self.runs_dir = slots, runs_dir
        self._options = ["--runs-dir", str(runs_dir), "--data-dir", str(data_dir), "--threads", str(threads)]
        self._options += [word for plugin in plugins for word in ("--plugin", plugin)]

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        """Run all waiting jobs; see :class:`plastibench.sweeps.engine.Engine`."""
        running: list[_Process] = []
        try:
            while running or any(job.state == "waiting" for job in jobs):
                running = [process for process in running if not process.poll(self.runs_dir)]
                if stop:
                    for job in jobs:
                        if job.state == "waiting":
                            job.state = "stopped"
                    for process in running:
                        process.ask_to_stop()
                waiting = [job for job in jobs if job.state == "waiting"]
                for job in waiting[: self.slots - len(running)]:
                    gpu, variables = _assign_gpu(job, [process.gpu for process in running], self.slots)
                    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.slots)))
                    running.append(
                        _Process(job, self.runs_dir, self._options, {"OMP_NUM_THREADS": threads, **variables}, gpu)
                    )
                on_poll()
                time.sleep(_POLL_SECONDS)
        finally:
            for process in running:
                process.ask_to_stop()


class _Process:
    """The process of one running job."""

    def __init__(
        self, job: Job, runs_dir: Path, options: Sequence[str], variables: dict[str, str], gpu: int | None
    ) -> None:
        self.job, self.gpu = job, gpu
        self._asked_to_stop = False
        self._lines: list[str] = []
        command = [sys.executable, "-m", "plastibench", "resume", run_folder(job.spec, runs_dir).name]
        self._process = subprocess.Popen(
            [*command, "--for-command", provenance.command(), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",  # libraries may write to stderr in another encoding
            env={**os.environ, **variables},
            start_new_session=True,  # so that Ctrl-C does not reach it
        )
        job.state, job.started = "running", time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.job.message = line.strip() or self.job.message
            self._lines = [*self._lines[-_LINES_KEPT:], line.rstrip()]

    def ask_to_stop(self) -> None:
        """Ask the process to checkpoint and exit, once: a second signal would kill it before it has."""
        if not self._asked_to_stop and self._process.poll() is None:
            self._process.terminate()
            self._asked_to_stop = True

    def poll(self, runs_dir: Path) -> bool:
        """Whether the process has ended; its job then has its final state."""
        status = self._process.poll()
        if status is None:
            return False
        self._reader.join(_PIPE_SECONDS)
        job, file = self.job, run_folder(self.job.spec, runs_dir) / FAILURE_FILE
        if status == 0:
            job.state, job.seconds = "complete", time.monotonic() - job.started
        else:
            job.state = "stopped" if status == 130 or self._asked_to_stop else "failed"
        if job.state == "failed":
            if status < 0:
                hint = "; the machine may have run out of memory" if status == -signal.SIGKILL else ""
                job.message = f"killed by {signal.Signals(-status).name}{hint}"
                self._lines.append(job.message)
            reason = "\n".join(self._lines) or f"exit status {status}"
            atomic_io.write_text(file, f"{reason}\n")
        else:
            file.unlink(missing_ok=True)
        return True


def _assign_gpu(job: Job, busy: Sequence[int | None], slots: int) -> tuple[int | None, dict[str, str]]:
    """The GPU with the fewest jobs, if there are several, and the environment variables that assign it.

    Args:
        job: The job to start.
        busy: The GPUs of the running jobs.
        slots: Number of processes at a time; those on one GPU divide its memory.
    """
    if not job.spec.run.device.startswith("cuda"):
        return None, {}
    count = _gpu_count()
    variables = {GPU_SHARE: str(1 / math.ceil(slots / max(1, count)))}
    if job.spec.run.device != "cuda" or count < 2:
        return None, variables
    gpu = min(range(count), key=busy.count)
    return gpu, {**variables, "CUDA_VISIBLE_DEVICES": str(gpu)}


def _gpu_count() -> int:
    """The number of GPUs to distribute jobs over; 0 if the user has chosen some for all jobs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return 0
    import torch

    return torch.cuda.device_count()
