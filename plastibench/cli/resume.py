"""The command ``plastibench resume``."""

from __future__ import annotations

import argparse
import sys

from plastibench.cli.arguments import add_execution, add_paths
from plastibench.cli.board_update import update_board
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.reused import note_reused
from plastibench.cli.run_names import find_run
from plastibench.cli.specs import resolve_devices
from plastibench.config.errors import UserError
from plastibench.utils.tables import terminal_width


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench resume ID [options]"
    parser.add_argument("id", metavar="ID", help="name of the run's folder in --runs-dir")
    # Set by sweeps: the command line to record in the result. The sweep then updates the leaderboard itself.
    parser.add_argument("--for-command", default="", help=argparse.SUPPRESS)
    add_execution(parser)
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Continue a run from its last checkpoint, or start it if there is none."""
    import_plugins(args.plugin)
    args.id = find_run(args.id, args.runs_dir)
    path = args.runs_dir / args.id / "spec.toml"
    from plastibench import leaderboard
    from plastibench.results.run_folder import read_spec
    from plastibench.training.runner import Interrupted, run

    (spec,) = resolve_devices([read_spec(path)])
    if args.id not in (spec.id, *spec.legacy_ids()):
        parent = " and pass its parent as --runs-dir" if "/" in args.id else ""
        raise UserError(
            f"{path} belongs to run {spec.id}: the folder was renamed, or the run options have changed since it was "
            f"created; rename the folder to that id{parent}, or start a new run with plastibench run --spec {path}"
        )

    try:
        result = run(
            spec,
            runs_dir=args.runs_dir,
            data_dir=args.data_dir,
            quiet=args.quiet,
            threads=args.threads,
            command=args.for_command,
            videos=args.videos,
        )
    except Interrupted as stopped:
        print(f"plastibench: {stopped}; run the same command to continue", file=sys.stderr)
        return 130
    print(f"\n{leaderboard.comparison([result], terminal_width(args.wide))}\n")
    if not args.for_command:
        note_reused([result] if result.reused else [], 1, "to rerun it, delete its folder")
        update_board(args.runs_dir)
    return 0
