"""Execute runs in several processes, for commands with more than one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plastibench.cli.engines import make_engine, submit
from plastibench.cli.reused import note_reused
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.utils.wording import plural

if TYPE_CHECKING:
    from plastibench.sweeps.engine import Engine

_PLENTY = 4_000_000_000  # bytes of free memory per run, above which memory is not measured before the start


def start_importing(args: argparse.Namespace, labels: Sequence[str] | None = None) -> None:
    """Start the server that forks runs, so that it imports PyTorch while this process does the same.

    Args:
        args: Arguments of engine, execution and paths.
        labels: For each run, the id without the digest at its end; None if the runs are not known yet. Nothing is
            started for a single run, or if all runs may be complete.
    """
    from plastibench.utils.machine import cores

    if args.engine != "local" or (args.jobs or cores()) == 1 or (labels is not None and len(labels) == 1):
        return
    if labels is not None and not args.force:
        complete = {path.parent.name.rpartition("_")[0] for path in args.runs_dir.glob("*/result.json")}
        if complete.issuperset(labels):
            return
    from plastibench.sweeps.run_server import start_server

    start_server()


def slots_for(specs: Sequence[RunSpec], args: argparse.Namespace) -> int:
    """Return the number of parallel runs: ``args.jobs``, or by default what cores, GPUs and memory allow.

    Args:
        specs: What to run, with resolved devices.
        args: Arguments of execution and paths.
    """
    from plastibench.sweeps.capacity import choose_slots
    from plastibench.utils.machine import available_memory

    if args.jobs:
        return int(args.jobs)
    left = _incomplete(specs, args)
    slots = choose_slots(left, args.threads)
    memory = available_memory()
    if slots < 2 or memory is None or memory / slots > _PLENTY:
        return slots
    from plastibench.sweeps.plan import plan_runs

    try:
        largest = max(plan.memory for plan in plan_runs(left, args.runs_dir, args.data_dir, args.threads))
    except UserError:  # the run itself will report the error
        return 1
    return choose_slots(left, args.threads, largest)


def run_in_parallel(specs: Sequence[RunSpec], args: argparse.Namespace, engine: Engine) -> tuple[int, list[Any]]:
    """Run each spec with an engine; return the exit status and the results of complete runs.

    Args:
        specs: What to run, with resolved devices.
        args: Arguments of engine, execution and paths.
        engine: Where to run them.
    """
    from plastibench.results.run_folder import find_result, run_folder
    from plastibench.results.tags import add_tags
    from plastibench.sweeps.engine import run_all
    from plastibench.sweeps.jobs import FAILURE_FILE
    from plastibench.training.stored_data import warn_if_data_changed
    from plastibench.training.trackers.tracking import send_stored
    from plastibench.utils.stop_signals import stop_requests

    options = {"quiet": args.quiet, "force": args.force, "fail_fast": args.fail_fast}
    try:
        with stop_requests() as stop:
            jobs = run_all(specs, engine, args.runs_dir, stop=stop, **options)
    finally:
        add_tags([run_folder(spec, args.runs_dir) for spec in specs], args.tag)
    done = [(job, result) for job in jobs if (result := find_result(job.spec, args.runs_dir)) is not None]
    reused = [(job, result) for job, result in done if job.state == "complete" and job.seconds is None]
    for job, result in reused:
        warn_if_data_changed(job.spec, result, args.data_dir)
    trackers = args.log
    for job, result in done if not stop else []:  # those that a tracker does not have yet
        trackers = send_stored(trackers, job.spec, result, quiet=args.quiet)
    note_reused([result for _, result in reused], len(jobs))
    found = [result for _, result in done]
    new = [result for job, result in done if job.seconds is not None]
    if not args.quiet and (stacked := sum(result.origin.stacked > 1 for result in new)):
        print(
            f"plastibench: {stacked} of {plural(len(new), 'run')} were trained in batched updates, with the same "
            "results as separate runs; this lowers their CPU time and raises 'cost %' (--stack off: separate)",
            file=sys.stderr,
        )
    for job in jobs:
        if job.state == "failed":
            reason = job.message.removeprefix("plastibench: ").removeprefix(f"{job.spec.id}: ")
            file = run_folder(job.spec, args.runs_dir) / FAILURE_FILE
            where = "" if FAILURE_FILE in reason else f" ({file})"
            print(f"plastibench: {job.spec.id}: {reason}{where}", file=sys.stderr)
    failed = [job for job in jobs if job.state == "failed"]
    if failed:
        print(f"plastibench: {len(failed)} of {plural(len(jobs), 'run')} failed", file=sys.stderr)
    if stop and any(job.state == "stopped" for job in jobs):
        print("plastibench: stopped; run the same command to continue", file=sys.stderr)
    if any(stop):  # signals; fail_fast adds a 0
        return 130, found
    return (0 if not failed else 2 if all(job.is_invalid for job in failed) else 1), found


def run_and_compare(specs: Sequence[RunSpec], args: argparse.Namespace) -> int:
    """Run specs in parallel, print the table of the runs that are complete, and return the exit status."""
    from plastibench.cli.board_update import update_board
    from plastibench.leaderboard import text as text_format
    from plastibench.leaderboard.standings import standings
    from plastibench.utils.tables import terminal_width

    if args.submit_only:
        return submit(args, specs)
    status, found = run_in_parallel(specs, args, make_engine(args, lambda: slots_for(specs, args)))
    if found:
        print(f"\n{text_format.table(standings(found), terminal_width(args.wide))}\n")
        update_board(args.runs_dir, plots=True)
    return status


def shares_processes(specs: Sequence[RunSpec], args: argparse.Namespace) -> bool:
    """Whether the local engine would run several of the incomplete runs in one process."""
    from plastibench.sweeps.jobs import Job
    from plastibench.sweeps.stacking import make_groups

    left = [Job(spec) for spec in _incomplete(specs, args)]
    return args.stack == "auto" and any(len(group) > 1 for group in make_groups(left, 1))


def dry_run(specs: Sequence[RunSpec], args: argparse.Namespace) -> int:
    """Print the estimated time, memory and disk space of incomplete runs without starting them; return the exit status.

    Args:
        specs: What to run, with resolved devices.
        args: Arguments of execution and paths.

    Raises:
        UserError: The runs do not fit into memory or onto the disk.
    """
    from plastibench.sweeps.capacity import choose_slots
    from plastibench.sweeps.plan import check_fit, plan_runs, report

    left = _incomplete(specs, args)
    if len(left) < len(specs):
        print(f"already complete: {len(specs) - len(left)} of {plural(len(specs), 'run')}")
    if left:
        plans = plan_runs(left, args.runs_dir, args.data_dir, args.threads)
        slots = args.jobs or choose_slots(left, args.threads, max(plan.memory for plan in plans))
        print(report(plans, slots, args.runs_dir))
        check_fit(plans, args.runs_dir)
    return 0


def _incomplete(specs: Sequence[RunSpec], args: argparse.Namespace) -> list[RunSpec]:
    """Return the specs that must be run."""
    from plastibench.results.run_folder import find_result

    return [spec for spec in specs if args.force or find_result(spec, args.runs_dir) is None]
