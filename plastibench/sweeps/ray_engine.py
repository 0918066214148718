"""The engine for a Ray cluster: a Ray Core task for each run, retried if its worker dies."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plastibench.config.errors import UserError
from plastibench.results.run_folder import run_folder
from plastibench.sweeps.jobs import Job, RunArguments, end, startable
from plastibench.sweeps.remote_run import RemoteRun, make_run, observe
from plastibench.utils.machine import cores

_POLL_SECONDS = 0.5  # at most; the end of a task is noticed at once
_RETRIES = 3  # retries of a task whose worker has died; limited, in case a run always kills its worker
_OBJECT_STORE = 80_000_000  # bytes, the least that Ray accepts; tasks return a few lines


class RayEngine:
    """Runs each job as a task of a Ray cluster, or of a local one that ends with the command.

    A stop request cancels the tasks; running tasks save a checkpoint first. If a worker dies, Ray restarts its task,
    which continues from the checkpoint.
    """

    def __init__(
        self,
        runs_dir: Path,
        arguments: RunArguments,
        *,
        jobs: int = 0,
        cpus: int = 1,
        gpus: float = 0.0,
        memory: float = 0.0,
        address: str = "",
    ) -> None:
        """Connect to a cluster, or start a local one.

        Args:
            runs_dir: Folder of all runs, on storage that all machines of the cluster share.
            arguments: Arguments of every process; the data folder must also be on shared storage.
            jobs: Number of runs at a time; 0: as many as fit on the cluster.
            cpus: CPU cores per run.
            gpus: GPUs per run on a GPU; a fraction lets runs share a GPU and its memory.
            memory: GB of memory per run; 0: not considered.
            address: Address of a cluster; empty: start a local one.

        Raises:
            UserError: Ray is not installed, the cluster cannot be reached, or a run does not fit on any machine.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics over the network
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'plastibench[ray]'") from error
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            options |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        try:
            ray.init(address=address or "local", **options)
        except Exception as error:  # Ray has no common class of errors
            ray.shutdown()
            where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
            raise UserError(f"cannot use {where}: {str(error).strip().partition(chr(10))[0]}") from error
        from plastibench.utils.runtime import GPU_SHARE  # imports PyTorch, which the workers of Ray do not need

        self._ray = ray
        self.runs_dir = runs_dir
        self._arguments, self._cpus = arguments, cpus
        self._gpus, self._share = gpus, {GPU_SHARE: str(gpus)} if 0 < gpus < 1 else {}
        self._wanted = {"CPU": cpus, "GPU": gpus, "memory": memory * 1e9}
        room = _room([node["Resources"] for node in ray.nodes() if node["Alive"]], self._wanted)
        if not room:
            needs = {"CPU cores": cpus, "GPUs": gpus, "GB of memory": memory}
            wanted = " and ".join(f"{value:g} {name}" for name, value in needs.items() if value)
            message = f"no machine of the Ray cluster has {wanted}, as each run needs"
            if not address:
                ray.shutdown()
                raise UserError(message)
            print(f"plastibench: {message}; waiting until the cluster grows", file=sys.stderr)
        self._limit = jobs or sys.maxsize  # Ray queues the rest, and a cluster that grows must see it
        self.slots = min(max(1, room), self._limit)

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        """Run all waiting jobs; see :class:`plastibench.sweeps.engine.Engine`."""
        tasks: dict[Any, Job] = {}
        cancelled = False
        try:
            while tasks or any(job.state == "waiting" for job in jobs):
                submitted = {id(job) for job in tasks.values()}
                if stop:
                    for job in jobs:
                        if job.state == "waiting" and id(job) not in submitted:
                            job.state = "stopped"
                    if not cancelled:
                        for task in tasks:
                            self._ray.cancel(task)
                        cancelled = True
                left = [job for job in jobs if id(job) not in submitted]
                for job in startable(left, self.runs_dir)[: self._limit - len(tasks)]:
                    tasks[self._submit(job)] = job
                on_poll()
                if not tasks:
                    time.sleep(_POLL_SECONDS)
                    continue
                ended, _ = self._ray.wait(list(tasks), timeout=_POLL_SECONDS)
                for task in ended:
                    self._end(tasks.pop(task), task, bool(stop))
                for job in tasks.values():
                    observe(job, self.runs_dir)
        finally:
            self._ray.shutdown()

    def _submit(self, job: Job) -> Any:
        run = make_run(RemoteRun, job, self.runs_dir, self._arguments, self._cpus)
        options: dict[str, Any] = {"num_cpus": self._cpus, "max_retries": _RETRIES, "name": job.spec.id}
        if job.spec.run.device.startswith("cuda"):
            options["num_gpus"] = self._gpus
            run.variables = {**run.variables, **self._share}
        if memory := self._wanted["memory"]:
            options["memory"] = int(memory)
        job.started = time.monotonic()
        return self._ray.remote(_call).options(**options).remote(run)

    def _end(self, job: Job, task: Any, stopped: bool) -> None:
        try:
            status, lines = self._ray.get(task)
        except self._ray.exceptions.TaskCancelledError:  # before it started
            status, lines = 130, []
        except self._ray.exceptions.RayError as error:
            status, lines = 1, [*str(error).splitlines(), f"Ray has given up: {type(error).__name__}"]
        job.message = lines[-1] if lines else ""
        end(job, run_folder(job.spec, self.runs_dir), status, lines, stopped)


def _call(run: RemoteRun) -> tuple[int, list[str]]:
    """What a task does."""
    # ray.cancel() raises a KeyboardInterrupt, unless SIGINT is ignored because the command runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _room(nodes: Sequence[dict[str, float]], wanted: dict[str, float]) -> int:
    """The number of runs that fit onto machines with these resources."""
    needs = {name: value for name, value in wanted.items() if value}
    return sum(min(int(node.get(name, 0) / value + 1e-9) for name, value in needs.items()) for node in nodes)
