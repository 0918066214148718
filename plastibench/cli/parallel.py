"""Runs in several processes, for the commands that have more than one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from plastibench.cli.board_update import update_board
from plastibench.config.spec import RunSpec


def run_in_parallel(specs: Sequence[RunSpec], args: argparse.Namespace) -> int:
    """Run specs in ``args.jobs`` processes and compare the runs that are complete; return the exit status.

    Args:
        specs: What to run, with resolved devices.
        args: Arguments of execution and paths.
    """
    from plastibench.leaderboard import text as text_format
    from plastibench.leaderboard.standings import standings
    from plastibench.results.files import read_result_if_complete
    from plastibench.results.tags import add_tags
    from plastibench.sweeps.engine import run_all
    from plastibench.sweeps.jobs import FAILURE_FILE
    from plastibench.sweeps.local_engine import LocalEngine
    from plastibench.utils.stop_signals import stop_requests
    from plastibench.utils.tables import terminal_width

    engine = LocalEngine(args.jobs, args.runs_dir, args.data_dir, args.plugin, args.threads)
    try:
        with stop_requests() as stop:
            jobs = run_all(specs, engine, args.runs_dir, stop=stop, quiet=args.quiet)
    finally:
        add_tags([args.runs_dir / spec.id for spec in specs], args.tag)
    there = (read_result_if_complete(args.runs_dir / job.spec.id) for job in jobs)
    if found := [result for result in there if result is not None]:
        print(f"\n{text_format.table(standings(found), terminal_width(args.wide))}\n")
        update_board(args.runs_dir, plots=True)
    for job in jobs:
        if job.state == "failed":
            print(f"plastibench: {job.spec.id} failed: {job.message} ({job.spec.id}/{FAILURE_FILE})", file=sys.stderr)
    if stop:
        print("plastibench: stopped; run the same command to continue", file=sys.stderr)
        return 130
    return 1 if any(job.state == "failed" for job in jobs) else 0
