"""The interface of engines, which run many specs.

An engine receives jobs and runs ``plastibench resume ID`` for each, on any machine that it manages. These machines must
share the folder of runs, which contains the spec, checkpoints and result of each run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from plastibench.config.spec import RunSpec
from plastibench.sweeps.jobs import Job, prepare
from plastibench.sweeps.live_table import LiveTable

FAILED = 0  # a stop request because a run has failed; other stop requests are signal numbers


class Engine(Protocol):
    """Runs jobs.

    Attributes:
        slots: Number of jobs that run in parallel, if known; used to estimate the remaining time.
    """

    slots: int

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        """Run all jobs that are waiting; return when none is waiting or running.

        A failed job does not stop the others; its reason goes to ``failure.txt`` in its folder.

        Args:
            jobs: The jobs; the engine updates their states in place.
            stop: Becomes non-empty when the jobs should checkpoint and exit. Those that are waiting do not start.
            on_poll: Is called whenever the states may have changed.
        """


def run_all(
    specs: Sequence[RunSpec],
    engine: Engine,
    runs_dir: Path,
    *,
    stop: list[int] | None = None,
    quiet: bool = False,
    force: bool = False,
    fail_fast: bool = False,
) -> list[Job]:
    """Run all specs that have no result yet and show progress.

    Args:
        specs: What to run.
        engine: Where to run it.
        runs_dir: Folder of all runs.
        stop: Becomes non-empty when the runs should checkpoint and exit.
        fail_fast: When a run fails, stop all others by adding :data:`FAILED` to ``stop``.
        quiet: Show no progress.
        force: Rerun complete runs.
    """
    jobs = prepare(specs, runs_dir, force)
    table = LiveTable(jobs, engine.slots, quiet)
    stop = [] if stop is None else stop

    def on_poll() -> None:
        if fail_fast and not stop and any(job.state == "failed" for job in jobs):
            stop.append(FAILED)
        table.update()

    try:
        engine.run(jobs, stop=stop, on_poll=on_poll)
    finally:
        table.close()
    return jobs
