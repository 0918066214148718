"""Runs in several processes, for the commands that have more than one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from plastibench.cli.board_update import update_board
from plastibench.cli.reused import note_reused
from plastibench.config.spec import RunSpec


def run_in_parallel(specs: Sequence[RunSpec], args: argparse.Namespace) -> int:
    """Run specs in ``args.jobs`` processes and compare the runs that are complete; return the exit status.

    Args:
        specs: What to run, with resolved devices.
        args: Arguments of execution and paths.
    """
    from plastibench.leaderboard import text as text_format
    from plastibench.leaderboard.standings import standings
    from plastibench.results.run_folder import find_result, run_folder
    from plastibench.sweeps.engine import run_all
    from plastibench.sweeps.jobs import FAILURE_FILE
    from plastibench.sweeps.local_engine import LocalEngine
    from plastibench.training.stored_data import warn_if_data_changed
    from plastibench.utils.stop_signals import stop_requests

    engine = LocalEngine(args.jobs, args.runs_dir, args.data_dir, args.plugin, args.threads)
    with stop_requests() as stop:
        jobs = run_all(specs, engine, args.runs_dir, stop=stop, quiet=args.quiet, force=args.force)
    done = [(job, result) for job in jobs if (result := find_result(job.spec, args.runs_dir)) is not None]
    reused = [result for job, result in done if job.state == "complete" and job.seconds is None]
    if found := [result for _, result in done]:
        print(f"\n{text_format.table(standings(found))}\n")
        update_board(args.runs_dir, plots=True)
    for job, result in done:
        if result in reused:
            warn_if_data_changed(job.spec, result, args.data_dir)
    note_reused(reused, len(jobs))
    for job in jobs:
        if job.state == "failed":
            file = run_folder(job.spec, args.runs_dir).name + f"/{FAILURE_FILE}"
            print(f"plastibench: {job.spec.id} failed: {job.message} ({file})", file=sys.stderr)
    if stop:
        print("plastibench: stopped; run the same command to continue", file=sys.stderr)
        return 130
    return 1 if any(job.state == "failed" for job in jobs) else 0
