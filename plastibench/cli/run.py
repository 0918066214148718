"""The command ``plastibench run``."""

from __future__ import annotations

import argparse
import functools
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from plastibench.cli.arguments import DEFAULT_RUNS_DIR, add_execution, add_paths, split_names
from plastibench.cli.board_update import BOARD_ADDRESS, update_board
from plastibench.cli.component_options import Tables, option_help, read_option_flags
from plastibench.cli.engines import add_engine, check_engine, make_engine, resolve_devices_for, submit
from plastibench.cli.parallel import dry_run, run_in_parallel, shares_processes, slots_for, start_importing
from plastibench.cli.parser import CommandParser
from plastibench.cli.plots_folder import draw_default_plot
from plastibench.cli.plugins import import_plugins
from plastibench.cli.reused import note_reused
from plastibench.cli.run_options import add_run_options, given_run_options
from plastibench.cli.specs import checks_of, make_specs
from plastibench.cli.waiting import waiting
from plastibench.config.errors import RunError, UserError, all_of, raise_all
from plastibench.config.spec import PARTS, RunSpec, read_file, seeds_of
from plastibench.results.tags import add_tags
from plastibench.utils.tables import terminal_width
from plastibench.utils.torchrun import is_first_process, launched_processes
from plastibench.utils.wording import plural

_OPTIONS = "Set their options with --env.OPTION, --agent.OPTION and --intervention.OPTION."
_MISSING = {
    "env": "run needs an env, for example cl-digits (plastibench list envs shows all)",
    "agent": "run needs --agent, for example --agent mlp (plastibench list agents shows all)",
    "intervention": "--intervention is empty; use 'none' for the baseline",
}
_EXAMPLES = """\
examples:
  plastibench run cl-digits --agent vit-nano --intervention none,reset,rnr --seed 0..2
  plastibench run relabel-digits --agent mlp --agent.lr 1e-3 --intervention rnr --intervention.quantile 0.2
  plastibench run --spec runs/ID/spec.toml

to see the options of an env, agent or intervention, name it before --help:
  plastibench run cl-digits --agent vit-nano --intervention rnr --help"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.components = PARTS
    parser.usage = "plastibench run ENV --agent NAME [--intervention NAMES] [options]"
    parser.epilog = _EXAMPLES
    names = parser.add_argument_group("what to run", _OPTIONS)
    names.add_argument(
        "env", nargs="?", metavar="ENV", help="a task stream or an RL environment (see: plastibench list envs)"
    )
    names.add_argument("--agent", metavar="NAME", help="agent (see: plastibench list agents)")
    names.add_argument(
        "--intervention", metavar="NAMES", help="one or more interventions, such as none,reset,rnr (default: none)"
    )
    names.add_argument(
        "--spec", type=Path, metavar="FILE", help="read names and options from a TOML file; flags take precedence"
    )
    add_run_options(parser)
    add_execution(parser, jobs=True)
    add_engine(parser)
    parser.add_argument("--no-plot", action="store_true", help="do not plot the runs at the end")
    add_paths(parser)
    # Replaces argparse's flag: the help depends on the names given and on plugins.
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="show this help, plus the options of the given env, agent and interventions",
    )


def execute(args: argparse.Namespace) -> int:
    """Run every combination of intervention and seed, and compare the results."""
    import_plugins(args.plugin)
    tables = _requested(args)
    if args.help:
        read_option_flags(args, tables)
        return _show_help(args.parser, tables)
    check_engine(args)
    all_of([lambda: read_option_flags(args, tables), lambda: _check_names(tables)])
    if not args.dry_run and launched_processes() == 1 and tables["run"].get("device", "auto") in ("auto", "cpu"):
        start_importing(args, _labels(tables))
    with waiting("importing PyTorch", args.quiet):
        specs = resolve_devices_for(args, make_specs(tables))
        if args.engine == "local":
            import_module("plastibench.training.runner")  # the rest of what takes seconds
    if args.dry_run:
        return dry_run(specs, args)
    roles = tables["run"].get("roles")
    if roles is not None and not all(spec.run.roles for spec in specs):  # `none` does not keep them
        from plastibench.training.assembly import check_roles

        check_roles(specs[0], roles, args.data_dir, "cpu" if args.engine != "local" else None)
    if args.videos and not all((args.runs_dir / spec.id / "result.json").exists() for spec in specs):
        from plastibench.training.videos import check_rendering

        check_rendering(specs[0].create("env").make(args.data_dir))
    if len(specs) > 1 and launched_processes() == 1:
        _check_together(specs, args)
    if launched_processes() > 1:  # all processes train each run together
        return _run_one_by_one(specs, args)
    if args.submit_only:
        return submit(args, specs)
    slots = slots_for(specs, args) if args.engine == "local" and len(specs) > 1 else 1
    if slots == 1 and args.engine == "local" and not shares_processes(specs, args):
        return _run_one_by_one(specs, args)
    status, found = run_in_parallel(specs, args, make_engine(args, lambda: slots))
    if found:
        _compare(found, args)
    return status


def _requested(args: argparse.Namespace) -> Tables:
    """The names and options of the run, from spec file and flags; flags take precedence."""
    tables: Tables = {part: {} for part in (*PARTS, "run")}
    if args.spec is not None:
        tables.update(read_file(args.spec))
    for part in PARTS:
        name = getattr(args, part)
        if name is not None and name != tables[part].get("name"):
            tables[part] = {"name": name}
    tables["intervention"].setdefault("name", "none")
    tables["run"].update(given_run_options(args))
    return tables


def _check_names(tables: Tables) -> None:
    """Report everything that is wrong with names and options before torch is imported."""
    missing = [message for part, message in _MISSING.items() if not tables[part].get("name")]
    all_of([lambda: raise_all(missing), *checks_of(tables)])


def _labels(tables: Tables) -> list[str]:
    """The ids of all runs, without the digests at their ends."""
    env, agent, interventions = (tables[part]["name"] for part in PARTS)
    seeds = seeds_of(tables["run"].get("seed", 0))
    return [f"{env}_{agent}_{name}_s{seed}" for seed in seeds for name in split_names(interventions)]


def _show_help(parser: CommandParser, tables: Tables) -> int:
    print(parser.format_help())
    names = {part: split_names(tables[part].get("name", "")) for part in PARTS}
    if names["env"] or names["agent"] or names["intervention"] != ["none"]:
        for part, chosen in names.items():
            for name in chosen:
                print(option_help(part, name), end="\n\n")
    return 0


def _check_together(specs: list[RunSpec], args: argparse.Namespace) -> None:
    """Check all methods of the command before the first run starts, so that mistakes are found early.

    Raises:
        UserError: A method's class is wrong, or it cannot act in this run.
    """
    from plastibench.interventions.class_checks import check_method
    from plastibench.training.assembly import check_options

    if len({spec.intervention[0] for spec in specs}) < 2:
        return
    if all((args.runs_dir / spec.id / "result.json").exists() for spec in specs):
        return
    import torch

    for spec in specs:
        check_method(spec.create("intervention"))
    env = specs[0].create("env").make(args.data_dir)
    agent = specs[0].create("agent").build(env, specs[0].run.seed, torch.device("cpu"))
    all_of(functools.partial(check_options, spec, env, agent) for spec in specs)


def _run_one_by_one(specs: list[RunSpec], args: argparse.Namespace) -> int:
    from plastibench.training.failure import FAILURE_FILE
    from plastibench.training.opened_run import Interrupted
    from plastibench.training.runner import run
    from plastibench.utils import distributed
    from plastibench.utils.stop_signals import stop_requests

    found: list[Any] = []
    failed: list[Exception] = []
    with stop_requests() as stop:
        for number, spec in enumerate(specs):
            if distributed.all_reduce_max(len(stop)):  # requested while the previous run was finishing
                print(f"plastibench: stopped before {spec.id}; run the same command to continue", file=sys.stderr)
                return 130
            try:
                result = run(
                    spec,
                    runs_dir=args.runs_dir,
                    data_dir=args.data_dir,
                    quiet=args.quiet,
                    threads=args.threads,
                    announce=f"run {number + 1} of {len(specs)}: " if len(specs) > 1 else "",
                    runs_after=len(specs) - number - 1,
                    stop=stop,
                    force=args.force,
                    log=args.log,
                    videos=args.videos,
                )
            except Interrupted as stopped:
                print(f"plastibench: {stopped}; run the same command to continue", file=sys.stderr)
                return 130
            except (RunError, UserError) as error:
                was_started = distributed.on_first_process((args.runs_dir / spec.id / FAILURE_FILE).exists)
                if len(specs) == 1 or (number == 0 and not was_started):
                    raise
                failed.append(error)
                line = " ".join(str(error).split())
                print(f"plastibench: {spec.id}: {line.removeprefix(f'{spec.id}: ')}", file=sys.stderr)
                if args.fail_fast:
                    print("plastibench: stopped; run the same command to continue", file=sys.stderr)
                    break
                continue
            finally:
                if is_first_process():
                    add_tags([args.runs_dir / spec.id], args.tag)
            found.append(result)
    status = 0 if not failed else 1 if any(isinstance(error, RunError) for error in failed) else 2
    if failed:
        print(f"plastibench: {len(failed)} of {plural(len(specs), 'run')} failed", file=sys.stderr)
    if not is_first_process():
        return status
    note_reused([result for result in found if result.reused], len(specs))
    if found:
        _compare(found, args)
    return status


def _with_same_data(found: list[Any]) -> list[Any]:
    """Leave out results of data that has changed since; the latest result says what the data is now."""
    latest = max(found, key=lambda result: (not result.reused, result.origin.finished or ""))
    kept = [result for result in found if result.data_digest == latest.data_digest]
    if left := len(found) - len(kept):
        print(
            f"plastibench: the table omits {plural(left, 'result')} on different data; to rerun: --force",
            file=sys.stderr,
        )
    return kept


def _compare(found: list[Any], args: argparse.Namespace) -> None:
    """Print a table of the results, update TensorBoard, and print where the files are."""
    from plastibench import leaderboard

    found = _with_same_data(found)
    print(f"\n{leaderboard.comparison(found, terminal_width(args.wide))}\n")
    update_board(args.runs_dir, plots=True)
    if not args.no_plot and (path := draw_default_plot(found, args.runs_dir)):
        print(f"plot:        {path}")
    flag = "" if args.runs_dir == DEFAULT_RUNS_DIR else f" --runs-dir {args.runs_dir}"
    if args.videos:
        print(f"videos:      {args.runs_dir}/<run>/videos/*.gif")
    print(f"results:     {args.runs_dir}/<run>/result.json; compare all runs: plastibench leaderboard{flag}")
    print(f"TensorBoard: tensorboard --logdir {args.runs_dir}")
    print(f"its tables:  {BOARD_ADDRESS}")
