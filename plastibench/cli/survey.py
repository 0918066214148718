"""The command ``plastibench survey``."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from plastibench.cli.arguments import add_execution, add_paths, check_output_file, split_names
from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.engines import add_engine, check_engine, resolve_devices_for
from plastibench.cli.parallel import dry_run, run_and_compare, start_importing
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.run_options import add_run_options, given_run_options
from plastibench.cli.specs import make_specs
from plastibench.cli.waiting import waiting
from plastibench.config.spec import PARTS, RunSpec
from plastibench.utils.tables import terminal_width


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.components = PARTS
    parser.usage = "plastibench survey [ENV] [--agent NAME] [--intervention NAMES] [options]"
    names = parser.add_argument_group(
        "what to run", "Set options with --env.OPTION, --agent.OPTION and --intervention.OPTION."
    )
    names.add_argument("env", nargs="?", metavar="ENV", default="cl-digits", help="a task stream or an RL environment")
    names.add_argument("--agent", metavar="NAME", default="vit-nano", help="agent")
    names.add_argument(
        "--intervention", metavar="NAMES", help="only these interventions, such as none,reset,rnr (default: all)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table to this Markdown file")
    add_run_options(parser, defaults={"seed": "0..2"})
    add_execution(parser, jobs=True)
    add_engine(parser)
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Run every intervention, measure their costs, and print the table."""
    check_engine(args)
    import_plugins(args.plugin)
    from plastibench.leaderboard import origin
    from plastibench.results.run_folder import find_result
    from plastibench.sweeps import survey_table
    from plastibench.utils import atomic_io

    check_output_file(args.out)
    names = split_names(args.intervention) if args.intervention else survey_table.all_interventions()
    tables: Tables = {"env": {"name": args.env}, "agent": {"name": args.agent}, "intervention": {"name": names}}
    tables["run"] = given_run_options(args)
    read_option_flags(args, tables)
    if not args.dry_run:
        start_importing(args)
    with waiting("importing PyTorch", args.quiet):
        specs = resolve_devices_for(args, make_specs(tables))
    if args.dry_run:
        return dry_run(specs, args)
    status = run_and_compare(specs, args)
    if status == 130 or args.submit_only:
        return status
    first = {spec.intervention[0]: spec for spec in reversed(specs)}
    there = (find_result(spec, args.runs_dir) for spec in specs)
    found = [result for result in there if result is not None]
    if not found:
        return 1
    timed = [] if found[0].is_rl or args.engine != "local" else [first[name] for name in names]
    costs = survey_table.measure_costs(timed, args.data_dir, args.runs_dir / survey_table.COSTS_FILE)
    failures = _failures(specs, args.runs_dir)
    table = survey_table.table(found, costs, failures)
    legend = textwrap.fill(f"{survey_table.legend(found)} {origin(found)}", 110)
    if width := terminal_width(args.wide):
        drawn, count = survey_table.terminal_table(found, costs, failures, width)
        explained = f"{survey_table.legend(found, count)} {origin(found)}"
        print(f"\n{drawn}\n\n{textwrap.fill(explained, min(width, 120))}")
    else:
        print(f"\n{table}\n\n{legend}")
    if args.out:
        command = shlex.join(["plastibench", "survey", *args.words])
        atomic_io.write_text(args.out, f"`{command}`\n\n{table}\n\n{legend}\n")
    return 0


def _failures(specs: Sequence[RunSpec], runs_dir: Path) -> list[str]:
    """A sentence for each intervention whose runs failed, or for each seed if others are complete."""
    from plastibench.results.run_folder import find_result, run_folder
    from plastibench.training.failure import FAILURE_FILE, failure_line

    complete = {spec.id for spec in specs if find_result(spec, runs_dir) is not None}
    partly = {spec.intervention[0] for spec in specs if spec.id in complete}
    found = {}
    for spec in specs:
        folder, name = run_folder(spec, runs_dir), spec.intervention[0]
        if spec.id not in complete and (folder / FAILURE_FILE).exists():
            what = f"`{name}` failed with seed {spec.run.seed}" if name in partly else f"`{name}` failed"
            found[what] = failure_line(folder)
    return [f"{what}: {reason}" for what, reason in found.items()]
