"""The engine for one machine: a bounded number of processes, spread over its GPUs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from plastibench.results.run_folder import run_folder
from plastibench.sweeps.capacity import gpu_count
from plastibench.sweeps.jobs import FAILURE_FILE, Job, RunArguments, startable
from plastibench.sweeps.run_process import RunProcess
from plastibench.sweeps.stacking import make_groups
from plastibench.utils.machine import cores
from plastibench.utils.runtime import GPU_SHARE

_POLL_SECONDS = 0.5  # at most; the end of a process is noticed at once


class LocalEngine:
    """Runs each job in a separate process on this machine.

    Ctrl-C reaches only this process, which then asks the others to checkpoint.
    """

    def __init__(self, slots: int, runs_dir: Path, arguments: RunArguments, *, stack: bool = False) -> None:
        """Set up the engine.

        Args:
            slots: Number of processes at a time.
            runs_dir: Folder of all runs.
            arguments: Arguments of every process.
            stack: Run small networks of one kind together in each process; they end with the same results.
        """
        self.slots, self.runs_dir = slots, runs_dir
        self._arguments, self._stack = arguments, stack

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        """Run all waiting jobs; see :class:`plastibench.sweeps.engine.Engine`."""
        groups = make_groups([job for job in jobs if job.state == "waiting"], self.slots) if self._stack else []
        groups = groups or [[job] for job in jobs]
        self._groups = {job.spec.id: number for number, group in enumerate(groups) for job in group}
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
                while len(running) < self.slots and (ready := startable(jobs, self.runs_dir)):
                    running.append(self._start(ready, running))
                on_poll()
                wait([process.sentinel for process in running], _POLL_SECONDS)
        finally:
            for process in running:
                process.ask_to_stop()

    def _start(self, ready: Sequence[Job], running: Sequence[RunProcess]) -> RunProcess:
        """Start the first of the jobs that are ready, and those of its group."""
        mine = self._groups[ready[0].spec.id]
        together = [job for job in ready if self._groups[job.spec.id] == mine and not job.alone]
        group = ready[:1] if ready[0].alone else together
        gpu, variables = _assign_gpu(group[0], [process.gpu for process in running], self.slots)
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // self.slots)))
        folders = [run_folder(job.spec, self.runs_dir) for job in group]
        for folder in folders:  # the reason of an earlier failure
            with contextlib.suppress(OSError):
                (folder / FAILURE_FILE).unlink(missing_ok=True)
        return RunProcess(group, self._arguments.words(folders), {"OMP_NUM_THREADS": threads, **variables}, gpu)


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
