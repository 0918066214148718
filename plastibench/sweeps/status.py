"""Follow the runs of a sweep from their folders, whichever command or machine runs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from plastibench.config.spec import RunSpec
from plastibench.results.run_folder import run_folder
from plastibench.sweeps.jobs import Job, name_jobs, stored_state
from plastibench.sweeps.live_table import LiveTable, summary
from plastibench.sweeps.remote_run import observe
from plastibench.training.failure import failure_line

_POLL_SECONDS = 2.0


def show_status(specs: Sequence[RunSpec], runs_dir: Path) -> int:
    """Show the states of runs: in a terminal, until all have ended or Ctrl-C; otherwise once.

    Returns:
        The exit status.
    """
    jobs = name_jobs(specs)
    if not sys.stderr.isatty():
        _update(jobs, runs_dir)
        width = max(len(job.name) for job in jobs)
        for job in jobs:
            print(f"{job.state:8}  {job.name:{width}}  {job.message}".rstrip())
        print(f"\n{summary(jobs)}")
        return 0
    table = LiveTable(jobs, slots=1)
    try:
        while _update(jobs, runs_dir):
            table.update()
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        table.close()
    return 0


def _update(jobs: Sequence[Job], runs_dir: Path) -> bool:
    """Update all jobs; return whether there are any that have not ended."""
    for job in jobs:
        if job.state != "complete":
            _update_job(job, runs_dir)
    return any(job.state not in ("complete", "failed") for job in jobs)


def _update_job(job: Job, runs_dir: Path) -> None:
    observe(job, runs_dir)
    if job.state == "running":
        return
    job.message = ""
    folder = run_folder(job.spec, runs_dir)
    state = stored_state(folder)
    if state == "complete":
        job.state = "complete"
    elif state in ("failed", "damaged"):
        job.state, job.message = "failed", failure_line(folder) or "result.json is damaged"
    elif state == "interrupted":
        job.state, job.message = "stopped", "will continue from its checkpoint"
