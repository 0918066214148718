"""The command ``plastibench bench``."""

from __future__ import annotations

import argparse

from plastibench.cli.arguments import add_paths, add_threads, integer
from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.parser import CommandParser
from plastibench.cli.run_options import add_run_options, given_run_options
from plastibench.config.registry import REGISTRIES
from plastibench.config.spec import PARTS, RunSpec


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.components = PARTS
    parser.usage = "plastibench bench [ENV] [--agent NAME] [--intervention NAME] [options]"
    parser.epilog = (
        "Times, in alternation, an update in plastibench, the same update in a plain PyTorch loop, and its matrix\n"
        "products alone; then times one intervention. Supports task streams and, with --stack N, RL runs."
    )
    names = parser.add_argument_group(
        "what to time", "Set options with --env.OPTION, --agent.OPTION and --intervention.OPTION."
    )
    names.add_argument("env", nargs="?", metavar="ENV", default="cl-digits", help="task stream")
    names.add_argument("--agent", metavar="NAME", default="vit-nano", help="agent")
    names.add_argument("--intervention", metavar="NAME", default="rnr", help="intervention whose cost is measured")
    add_run_options(parser, only=("device", "deterministic", "representative", "roles"))
    timing = parser.add_argument_group("execution")
    timing.add_argument("--updates", type=integer(), default=5, metavar="N", help="updates per measurement")
    timing.add_argument(
        "--rounds",
        type=integer(2),
        default=20,
        metavar="N",
        help="number of rounds; each round measures every loop twice",
    )
    timing.add_argument(
        "--stack",
        type=integer(0, 1_000),
        default=0,
        metavar="N",
        help="also time N runs that are updated together, as run and sweep do with mlp; 0: none (default: 0)",
    )
    timing.add_argument("--json", action="store_true", help="print the values as JSON")
    add_threads(timing)
    add_paths(parser, runs=False)


def execute(args: argparse.Namespace) -> int:
    """Measure and print the report."""
    for part in PARTS:  # report an unknown name before torch is imported
        REGISTRIES[part][getattr(args, part)]
    from plastibench.sweeps.benchmark import benchmark
    from plastibench.utils.runtime import resolve_device

    tables: Tables = {part: {} for part in PARTS}
    tables["run"] = given_run_options(args)
    read_option_flags(args, tables)
    spec = RunSpec.make(
        args.env,
        args.agent,
        args.intervention,
        env_options=tables["env"],
        agent_options=tables["agent"],
        intervention_options=tables["intervention"],
        **{**tables["run"], "device": resolve_device(args.device or "auto")},
    )
    if args.stack and spec.create("env").kind == "rl":
        from plastibench.sweeps.rl_stack_speed import measure

        speed = measure(spec, args.data_dir, args.stack, args.updates, args.rounds, args.threads)
        print(speed.to_json() if args.json else speed.to_text())
        return 0
    found = benchmark(spec, args.data_dir, args.updates, args.rounds, args.threads, args.stack)
    print(found.to_json() if args.json else found.to_text())
    return 0
