"""The command ``plastibench sweep``."""

from __future__ import annotations

import argparse
from pathlib import Path

from plastibench.cli.arguments import add_execution, add_paths
from plastibench.cli.engines import add_engine, check_engine, resolve_devices_for
from plastibench.cli.parallel import dry_run, run_and_compare, start_importing
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.waiting import waiting
from plastibench.config.errors import UserError, did_you_mean

SIZES = ("digits", "paper")
_FILE = """\
A sweep file has the tables [env], [agent], [intervention] and [run], and a [[grid]] for each group of runs.
Every list is an axis of the grid:

  [env]
  name = "cl-digits"
  [agent]
  name = "vit-nano"
  [run]
  seed = "0..2"
  [[grid]]
  intervention = {name = ["none", "reset"]}
  [[grid]]
  intervention = {name = "rnr", quantile = [0.2, 0.4]}

examples:
  plastibench sweep my-sweep.toml
  plastibench sweep fig4 --list
  plastibench sweep fig4 --size paper --prepare | xargs -n 1 sbatch my-job.sh"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench sweep FILE [options]"
    parser.epilog = _FILE
    parser.add_argument(
        "file", metavar="FILE", help="a TOML file, or a built-in sweep for a paper figure: fig2, fig3, fig4, fig5"
    )
    parser.add_argument(
        "--size", choices=SIZES, default="digits", help="size of a built-in sweep: digits (small) or paper (full size)"
    )
    parser.add_argument("--list", action="store_true", help="only list the runs with their states")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="only write the specs and print the ids of unfinished runs, for a scheduler that calls "
        "plastibench resume ID",
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="only show the state and progress of the runs, read from their folders; in a terminal, keep updating "
        "until all runs have ended",
    )
    add_execution(parser, jobs=True)
    add_engine(parser)
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Run, list, prepare or follow the runs of a sweep."""
    check_engine(args)
    import_plugins(args.plugin)
    from plastibench.config.short_names import short_names, tables_of
    from plastibench.sweeps.grid import read_grid

    runs_now = not (args.prepare or args.list or args.dry_run or args.status)
    file = _path(args.file, args.size)
    with waiting("importing PyTorch", args.quiet):
        specs = resolve_devices_for(args, read_grid(file, lambda: start_importing(args) if runs_now else None))
    from plastibench.results.run_folder import run_folder
    from plastibench.sweeps.jobs import prepare, stored_state  # imports pydantic, not needed to report a wrong file

    if args.status:
        from plastibench.sweeps.status import show_status

        return show_status(specs, args.runs_dir)
    if args.prepare:
        for job in prepare(specs, args.runs_dir, args.force):
            if job.state != "complete":
                print(run_folder(job.spec, args.runs_dir).name)
        return 0
    if args.list:
        width = max(len(spec.id) for spec in specs)
        for spec, name in zip(specs, short_names([tables_of(spec) for spec in specs]), strict=True):
            folder = run_folder(spec, args.runs_dir)
            print(f"{stored_state(folder):11}  {folder.name:{width}}  {name}")
        return 0
    return dry_run(specs, args) if args.dry_run else run_and_compare(specs, args)


def _path(name: str, size: str) -> Path:
    """The file of this name, or else the built-in sweep."""
    if Path(name).exists() or "." in name:
        return Path(name)
    folder = Path(__file__).parents[1] / "sweeps"
    built_in = folder / f"{name}-{size}.toml"
    if not built_in.exists():
        names = [path.stem.removesuffix(f"-{size}") for path in sorted(folder.glob(f"*-{size}.toml"))]
        raise UserError(f"no file and no built-in sweep '{name}'{did_you_mean(name, names)} ({', '.join(names)})")
    return built_in
