"""The command ``plastibench bench`` and its parts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastibench.cli import bench_gpu
from plastibench.cli.arguments import add_paths, add_threads, check_output_file, integer, split_names
from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.parser import CommandParser
from plastibench.cli.run_options import add_run_options, given_run_options
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.registry import REGISTRIES
from plastibench.config.spec import PARTS, RunSpec
from plastibench.utils.atomic_io import write_text

if TYPE_CHECKING:
    from plastibench.sweeps.benchmark.timing import Clock

SUMMARIES = {
    "train": "time per update: plastibench, a plain loop, a loop with a DataLoader, and matrix products alone",
    "stack": "the gain from updating several runs of a small network together",
    "intervene": "what interventions cost: per update, per intervention, in memory",
    "data": "batches per second: task buffer and augmentation against a DataLoader",
    "rl": "an RL agent against a plain loop of DQN or SAC",
    "all": "all of the above with small defaults",
    "gpu": "all GPU benchmarks within minutes; writes JSON and Markdown",
}
_ENVS = {"rl": "rl-cartpole"}
_AGENTS = {"stack": "mlp", "rl": "dqn-mlp"}
_ROUNDS = {"intervene": 12, "data": 5, "rl": 10}
_UPDATES = {"data": 20, "rl": 50}
_CLOCK = "wall: elapsed time; cpu: CPU time of this process, for busy machines"
_MEASURED = {
    "stack": "updates (RL: steps of all environments) per measurement",
    "data": "batches per measurement",
    "rl": "updates, and steps of all environments, per measurement",
}


def configure(parser: CommandParser) -> None:
    """Add the parts, each with its own arguments."""
    parser.usage = "plastibench bench PART [ENV] [--agent NAME] [options]"
    parser.default_part = "train"
    for name, summary in SUMMARIES.items():
        part = parser.add_part(name, summary)
        if name == "gpu":
            bench_gpu.configure(part)
        elif name == "all":
            _add_timing(part, name)
            add_run_options(part, only=("device",))
            add_paths(part, runs=False)
        else:
            _configure_part(part, name)


def _configure_part(parser: CommandParser, part: str) -> None:
    intervenes = part in ("train", "intervene")
    parser.components = PARTS if intervenes else ("env", "agent")
    method = {"train": " [--intervention NAME]", "intervene": " [--intervention NAMES]"}.get(part, "")
    parser.usage = f"plastibench bench {part} [ENV] [--agent NAME]{method} [options]"
    flags = ", ".join(f"--{each}.OPTION" for each in parser.components)
    names = parser.add_argument_group("what to time", f"Set options with {flags}.")
    env, agent = _ENVS.get(part, "relabel-digits"), _AGENTS.get(part, "vit-nano")
    names.add_argument("env", nargs="?", metavar="ENV", default=env, help="environment")
    names.add_argument("--agent", metavar="NAME", default=agent, help="agent")
    if part == "train":
        help = "method to attach in plastibench's loop; the time of one intervention is also measured"
        names.add_argument("--intervention", metavar="NAME", default="none", help=help)
    if part == "intervene":
        help = "interventions to measure, such as rnr,redo, or all"
        names.add_argument("--intervention", metavar="NAMES", default="rnr", help=help)
    only = ("device", "deterministic", *(("representative", "roles") if intervenes else ()))
    add_run_options(parser, only=only)
    timing = _add_timing(parser, part)
    help = _MEASURED.get(part, "updates per measurement")
    timing.add_argument("--updates", type=integer(), default=_UPDATES.get(part, 5), metavar="N", help=help)
    if part in ("train", "stack", "data"):
        help = "worker processes of the DataLoader (default: one per core, at most 4)"
        timing.add_argument("--workers", type=integer(0, 256), metavar="N", help=help)
    if part in ("train", "stack"):
        help = "loops to compare with: plain, loader, products, or none (default: %(default)s)"
        loops = "plain,loader,products" if part == "train" else "plain,products"
        timing.add_argument("--loops", type=_loops, default=_loops(loops), metavar="NAMES", help=help)
    if part == "stack":
        help = "runs that are updated together, as run and sweep do"
        timing.add_argument("--runs", dest="stack", type=integer(1, 1_000), default=10, metavar="N", help=help)
    if part == "train":  # the old form, bench ENV --stack N
        timing.add_argument("--stack", type=integer(0, 1_000), default=0, help=argparse.SUPPRESS)
    add_paths(parser, runs=False)


def _add_timing(parser: CommandParser, part: str) -> argparse._ArgumentGroup:
    timing = parser.add_argument_group("execution")
    help = "number of rounds; a round measures each loop twice"
    timing.add_argument("--rounds", type=integer(2), default=_ROUNDS.get(part, 20), metavar="N", help=help)
    if part != "data":
        loops = " (leaves out the loop with a DataLoader)" if part in ("train", "all") else ""
        timing.add_argument("--clock", choices=["wall", "cpu"], default="wall", help=_CLOCK + loops)
    help = "print the values as JSON, or write them to FILE.json and print the text"
    timing.add_argument("--json", type=_json_file, nargs="?", const=True, metavar="FILE.json", help=help)
    add_threads(timing)
    return timing


class _Loops(tuple[str, ...]):
    """Names of loops that are shown in help as they are typed."""

    def __str__(self) -> str:
        return ",".join(self)


def _loops(text: str) -> _Loops:
    known = ("plain", "loader", "products")
    found = _Loops(() if text == "none" else split_names(text))
    if wrong := [name for name in found if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown loop '{wrong[0]}' (choose from {', '.join(known)}, or none)")
    return found


def _json_file(text: str) -> Path:
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"'{text}' does not end in .json; put --json last to print the values")
    return Path(text)


def execute(args: argparse.Namespace) -> int:
    """Measure and print a part."""
    if args.part == "gpu":
        return bench_gpu.execute(args)
    check_output_file(args.json if isinstance(args.json, Path) else None)
    if args.part == "all":
        values = _measure_all(args)
    else:
        values, text = _measure(args.part, args)
        if args.json is not True:
            print(text)
    content = json.dumps(values, indent=1)
    if args.json is True:
        print(content)
    elif args.json is not None:
        write_text(args.json, content + "\n")
    return 0


def _measure(part: str, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The values of a part, and their text."""
    interventions = _interventions(args)
    for name, given in (("env", [args.env]), ("agent", [args.agent]), ("intervention", interventions)):
        for each in given:  # report an unknown name before torch is imported
            REGISTRIES[name][each]
    from plastibench.sweeps.benchmark import data_speed, rl_speed, rl_stack_speed, update_speed
    from plastibench.utils.provenance import session
    from plastibench.utils.runtime import resolve_device

    device = resolve_device(args.device or "auto")
    specs = [_spec(args, each, device) for each in interventions]
    counts = args.data_dir, args.updates, args.rounds, args.threads
    if part == "intervene":
        values, text = _costs(specs, args)
    else:
        found: Any
        if part == "rl":
            found = rl_speed.measure_rl(specs[0], *counts, clock=args.clock)
        elif part == "data":
            found = data_speed.measure_data(specs[0], *counts, workers=args.workers)
        elif part == "stack" and specs[0].create("env").kind == "rl":
            found = rl_stack_speed.measure_rl_stack(specs[0], *counts, stack=args.stack, clock=args.clock)
        else:
            chosen: dict[str, Any] = {"loops": args.loops, "workers": args.workers, "stack": args.stack}
            found = update_speed.measure_updates(specs[0], *counts, **chosen, clock=args.clock)
        values, text = dataclasses.asdict(found), found.to_text()
    return {"part": part, **session(device), **values}, text


def _costs(specs: Sequence[RunSpec], args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The cost of each intervention; one that does not work with the agent says why."""
    from plastibench.sweeps.benchmark.intervention_cost import Cost, cost, cost_table

    clock: Clock = args.clock
    found: dict[str, Cost | str] = {}
    for spec in specs:
        try:
            found[spec.intervention[0]] = cost(
                spec, args.data_dir, args.updates, args.rounds, args.threads, repeats=3, clock=clock
            )
        except UserError as error:
            if len(specs) == 1:
                raise
            found[spec.intervention[0]] = str(error)
    values = {name: each if isinstance(each, str) else dataclasses.asdict(each) for name, each in found.items()}
    head = f"{args.env}, {args.agent}, {specs[0].run.device}{', CPU time' if clock == 'cpu' else ''}"
    return {"env": args.env, "agent": args.agent, "clock": clock, "costs": values}, f"{head}\n\n{cost_table(found)}"


def _interventions(args: argparse.Namespace) -> list[str]:
    given = getattr(args, "intervention", "none")
    if given == "all":
        return [name for name in registry.interventions.all() if not name.endswith("*") and name != "none"]
    return split_names(given)


def _spec(args: argparse.Namespace, intervention: str, device: str) -> RunSpec:
    tables: Tables = {part: {} for part in PARTS}
    tables["run"] = given_run_options(args)
    read_option_flags(args, tables)
    return RunSpec.make(
        args.env,
        args.agent,
        intervention,
        env_options=tables["env"],
        agent_options=tables["agent"],
        intervention_options=tables["intervention"],
        **{**tables["run"], "device": device},
    )


def _measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all parts but ``gpu`` on small networks; print each as soon as it is there."""
    values: dict[str, Any] = {}
    for name, small in _SMALL.items():
        part = args.parser.parent.parts[name]
        each = part.parse_words(small)
        each.rounds = args.rounds
        each.device, each.threads, each.data_dir = args.device, args.threads, args.data_dir
        each.clock = args.clock
        values[name], text = _measure(name, each)
        where = sys.stderr if args.json is True else sys.stdout
        print(f"{name}\n{'-' * len(name)}\n{text}\n", file=where, flush=True)
    return values


_SMALL = {
    "train": ["cl-digits", "--env.noise", "0,0", "--agent", "vit-nano"],
    "stack": ["relabel-digits", "--agent", "mlp", "--updates", "20"],
    "intervene": ["relabel-digits", "--agent", "vit-nano", "--intervention", "rnr,redo,upgd"],
    "data": ["cl-digits", "--env.noise", "0,0"],
    "rl": ["rl-cartpole", "--agent", "dqn-mlp"],
}
