"""Engines run many specs: the interface that each of them implements.

An engine gets jobs and runs ``plastibench resume ID`` for each, on whatever machines it has. All it needs is a folder
of runs that these machines share: a run keeps its spec, checkpoints and result there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from plastibench.config.spec import RunSpec
from plastibench.sweeps.jobs import Job, prepare
from plastibench.sweeps.live_table import LiveTable


class Engine(Protocol):
    """Runs jobs, at most ``slots`` at a time."""

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
    stop: Sequence[int] = (),
    quiet: bool = False,
    force: bool = False,
) -> list[Job]:
    """Run all specs that have no result yet and show progress.

    Args:
        specs: What to run.
        engine: Where to run it.
        runs_dir: Folder of all runs.
        stop: Becomes non-empty when the runs should checkpoint and exit.
        quiet: Show no progress.
        force: Repeat complete runs.
    """
    jobs = prepare(specs, runs_dir, force)
    table = LiveTable(jobs, engine.slots, quiet)
    try:
        engine.run(jobs, stop=stop, on_poll=table.update)
    finally:
        table.close()
    return jobs
