"""The engine for one machine: a bounded number of processes, spread over its GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from plastibench.results.run_folder import run_folder
from plastibench.sweeps.capacity import gpu_count
from plastibench.sweeps.jobs import Job, startable
from plastibench.sweeps.run_process import RunProcess
from plastibench.utils import provenance
from plastibench.utils.machine import cores
from plastibench.utils.runtime import GPU_SHARE

_POLL_SECONDS = 0.5  # at most; the end of a process is noticed at once


class LocalEngine:
    """Runs each job in a separate process on this machine.

    Ctrl-C reaches this process only; it then asks the others to checkpoint.
    """

    def __init__(
        self, slots: int, runs_dir: Path, data_dir: Path, plugins: Sequence[str] = (), threads: int = 0, videos: int = 0
    ) -> None:
        """Set up the engine.

        Args:
            slots: Number of processes at a time.
            runs_dir: Folder of all runs.
            data_dir: Folder of datasets.
            plugins: Modules and files that every process imports first.
            threads: CPU threads per process; 0: one for a small network, cores / slots for a large one.
            videos: RL: record an episode of every Nth evaluation; 0: none.
        """
        self.slots, self.runs_dir = slots, runs_dir
        self._options = ["--runs-dir", str(runs_dir), "--data-dir", str(data_dir)]
        for flag, value in (("--threads", threads), ("--videos", videos)):
            self._options += [flag, str(value)] if value else []
        self._options += [word for plugin in plugins for word in ("--plugin", plugin)]

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        """Run all waiting jobs; see :class:`plastibench.sweeps.engine.Engine`."""
        running: list[RunProcess] = []
        try:
            while running or any(job.state == "waiting" for job in jobs):
                running = [process for process in running if not process.poll(self.runs_dir)]
                if stop:
                    for job in jobs:
                        if job.state == "waiting":
                            job.state = "stopped"
                    for process in running:
                        process.ask_to_stop()
                for job in startable(jobs, self.runs_dir)[: self.slots - len(running)]:
                    gpu, variables = _assign_gpu(job, [process.gpu for process in running], self.slots)
                    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // self.slots)))
                    folder = run_folder(job.spec, self.runs_dir).name
                    words = ["resume", folder, "--for-command", provenance.command(), *self._options]
                    running.append(RunProcess(job, words, {"OMP_NUM_THREADS": threads, **variables}, gpu))
                on_poll()
                wait([process.sentinel for process in running], _POLL_SECONDS)
        finally:
            for process in running:
                process.ask_to_stop()


def _assign_gpu(job: Job, busy: Sequence[int | None], slots: int) -> tuple[int | None, dict[str, str]]:
    """The GPU with the fewest jobs, if there are several, and the environment variables that assign it.

    Args:
        job: The job to start.
        busy: The GPUs of the running jobs.
        slots: Number of processes at a time; those on one GPU divide its memory.
    """
    if not job.spec.run.device.startswith("cuda"):
        return None, {}
    count = gpu_count()
    variables = {GPU_SHARE: str(1 / math.ceil(slots / max(1, count)))}
    if job.spec.run.device != "cuda" or count < 2:
        return None, variables
    gpu = min(range(count), key=busy.count)
    return gpu, {**variables, "CUDA_VISIBLE_DEVICES": str(gpu)}
