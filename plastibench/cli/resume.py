"""The command ``plastibench resume``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plastibench.cli.arguments import add_execution, add_paths
from plastibench.cli.board_update import update_board
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.reused import note_reused
from plastibench.cli.run_names import find_run
from plastibench.cli.specs import resolve_devices
from plastibench.cli.waiting import waiting
from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.utils.stop_signals import stop_with_parent
from plastibench.utils.tables import terminal_width
from plastibench.utils.torchrun import is_first_process


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench resume ID [ID …] [options]"
    parser.add_argument("ids", metavar="ID", nargs="+", help="name of a run's folder in --runs-dir")
    # Set by sweeps: the command line to record in the result. The sweep then updates the leaderboard itself.
    parser.add_argument("--for-command", default="", help=argparse.SUPPRESS)
    # Set by engines: the process that started this one; the run stops when that process ends.
    parser.add_argument("--stop-with-parent", type=int, default=0, help=argparse.SUPPRESS)
    add_execution(parser)
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Continue runs from their last checkpoints, or start those that have none."""
    if args.stop_with_parent:
        stop_with_parent(args.stop_with_parent)
    import_plugins(args.plugin)
    with waiting("importing PyTorch", args.quiet):
        specs = [_read(find_run(name, args.runs_dir), args) for name in args.ids]
    from plastibench import leaderboard
    from plastibench.results.result import Result
    from plastibench.training.opened_run import Interrupted

    outcomes = _run(specs, args)
    found = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in errors:
        again = "; run the same command to continue" if isinstance(error, Interrupted) else ""
        print(f"plastibench: {error}{again}", file=sys.stderr)
    status = 0 if not errors else 2 if all(isinstance(error, UserError) for error in errors) else 1
    if any(isinstance(error, Interrupted) for error in errors):
        status = 130
    if not is_first_process():
        return status
    if found:
        print(f"\n{leaderboard.comparison(found, terminal_width(args.wide))}\n")
    if not args.for_command:
        note_reused([each for each in found if each.reused], len(specs), "to rerun it, delete its folder")
        update_board(args.runs_dir)
    return status


def _run(specs: Sequence[RunSpec], args: argparse.Namespace) -> list[Any]:
    """Run specs together if their networks can be stacked, and otherwise one by one; return results and errors."""
    from plastibench.sweeps.stacking import stack_key
    from plastibench.training.opened_run import Interrupted, RunSettings
    from plastibench.training.run_together import run_together
    from plastibench.training.runner import run_alone
    from plastibench.utils.stop_signals import stop_requests

    settings = RunSettings(
        args.runs_dir,
        args.data_dir,
        quiet=args.quiet,
        threads=args.threads,
        command=args.for_command,
        trackers=args.log,
        videos=args.videos,
    )
    if len(specs) > 1 and len(keys := {stack_key(spec) for spec in specs}) == 1 and None not in keys:
        return run_together(specs, settings)
    outcomes: list[Any] = []
    with stop_requests() as stop:
        for spec in specs:
            try:
                outcomes.append(run_alone(spec, replace(settings, stop=stop)))
            except Interrupted as stopped:
                return [*outcomes, stopped]
            except (RunError, UserError) as error:
                if len(specs) == 1:
                    raise
                outcomes.append(error)
    return outcomes


def _read(name: str, args: argparse.Namespace) -> RunSpec:
    """Read the spec in a run's folder.

    Raises:
        UserError: The file is damaged, or belongs to another folder.
    """
    from plastibench.results.run_folder import read_spec

    path = args.runs_dir / name / "spec.toml"
    (spec,) = resolve_devices([read_spec(path)])
    if name in (spec.id, *spec.legacy_ids()):
        return spec
    parent = " and pass its parent as --runs-dir" if "/" in name else ""
    raise UserError(
        f"{path} belongs to run {spec.id}: the folder was renamed, or the run options have changed since it was "
        f"created; rename the folder to that id{parent}, or start a new run with plastibench run --spec {path}"
    )
