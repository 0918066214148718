"""``run`` and ``resume``: interventions on one scenario, one after the other or several at a time."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastibench.cli.shared import (
    KINDS,
    RUN_OPTIONS,
    add_places,
    count,
    import_plugin,
    listed,
    positive,
    read_option_flags,
    update_board,
)
from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import as_dict, describe_type, field_name, flag_name, options_of


def add_run(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``run``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("env", nargs="?", help="task stream (plastibench list envs)")
    parser.add_argument("--agent", help="agent (plastibench list agents)")
    parser.add_argument("--intervention", help="intervention, or several: none,reset,rnr (default none)")
    parser.add_argument("--seed", help="seed, or several: 0,1,2 or 0..4 (default 0)")
    parser.add_argument("--every", help="intervene every so many updates; 0: at task switches (default)")
    parser.add_argument("--roles", help="networks that are intervened on: critic,actor (default all)")
    parser.add_argument("--until", help="no intervention after so many updates (default: always)")
    parser.add_argument("--offline-updates", help="rl: extra updates right after an intervention (default 0)")
    parser.add_argument(
        "--checkpoint-memory",
        action="store_const",
        const=True,
        help="rl: keep the replay memory in checkpoints; a resumed run then goes on at once, with new episodes, "
        "instead of acting all its steps out again and ending bit-identical",
    )
    parser.add_argument("--representative", help="samples that interventions see (default 2048)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU where there is one)")
    parser.add_argument("--deterministic", action="store_const", const=True, help="only deterministic kernels")
    parser.add_argument(
        "--metrics", help="measure more: activity,gradients,ranks,weights,curvature,probes,all, or names of metrics"
    )
    parser.add_argument("--spec", type=Path, metavar="FILE", help="read names and options from a TOML file; flags win")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--jobs", type=positive, default=1, help="processes at a time, where there are several runs")
    parser.add_argument("--threads", type=count, default=0, help="CPU threads (default: 1 for a small network)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_places(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the options of all that is named")
    parser.set_defaults(do=_run, parser=parser)


def _run(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    tables = _requested(known)
    if known.help:
        _help_for(known.parser, tables)
        return 0
    for part in ("env", "agent"):
        if "name" not in tables[part]:
            names = ", ".join(KINDS[f"{part}s"].all())
            raise UserError(f"run needs {'an env' if part == 'env' else '--agent'}; there are {names}")
        KINDS[f"{part}s"][tables[part]["name"]]  # a wrong name is told before torch is imported
    if not tables["intervention"]["name"]:
        raise UserError("--intervention is empty; 'none' is the base of every comparison")
    for name in listed(tables["intervention"]["name"]):
        registry.interventions[name]
    specs = specs_of(tables)

    if known.jobs > 1 and len(specs) > 1:
        return work_pool(on_devices(specs), known)
    from plastibench import leaderboard
    from plastibench.training.runner import Interrupted, run
    from plastibench.utils.stop_signals import stop_requests

    found = []
    with stop_requests() as stop:
        for number, spec in enumerate(specs):
            if stop:  # asked for while the run before was being finished
                print(f"plastibench: stopped before {spec.id}; the same command continues", file=sys.stderr)
                return 130
            try:
                result = run(
                    spec,
                    runs_dir=known.runs_dir,
                    data_dir=known.data_dir,
                    quiet=known.quiet,
                    threads=known.threads,
                    announce=f"run {number + 1} of {len(specs)}: " if len(specs) > 1 else "",
                    stop=stop,
                )
            except Interrupted as stopped:
                print(f"plastibench: {stopped}; the same command continues it", file=sys.stderr)
                return 130
            found.append(result)
    print(f"\n{leaderboard.comparison(found)}\n")
    update_board(known.runs_dir)
    print(f"results:     {known.runs_dir}/<run>/result.json, all runs: plastibench leaderboard{_runs_flag(known)}")
    print(f"TensorBoard: tensorboard --logdir {known.runs_dir}")
    return 0


def work_pool(specs: Sequence[Any], known: argparse.Namespace) -> int:
    """Work through the specs with several processes; compare what is complete."""
    from plastibench.leaderboard import text as text_format
    from plastibench.leaderboard.standings import standings
    from plastibench.results.files import read_result_if_complete
    from plastibench.sweeps.pool import FAILURE, work_through
    from plastibench.utils.stop_signals import stop_requests

    with stop_requests() as stop:
        pool = work_through(
            specs,
            jobs=known.jobs,
            runs_dir=known.runs_dir,
            data_dir=known.data_dir,
            plugins=known.plugin,
            threads=known.threads,
            stop=stop,
            quiet=known.quiet,
        )
    there = (read_result_if_complete(known.runs_dir / job.spec.id) for job in pool)
    if found := [result for result in there if result is not None]:
        print(f"\n{text_format.table(standings(found))}\n")
        update_board(known.runs_dir, drawn=True)
    for job in pool:
        if job.state == "failed":
            print(f"plastibench: {job.spec.id} failed: {job.line} ({job.spec.id}/{FAILURE})", file=sys.stderr)
    if stop:
        print("plastibench: stopped; the same command continues", file=sys.stderr)
        return 130
    return 1 if any(job.state == "failed" for job in pool) else 0


def on_devices(specs: Sequence[Any]) -> list[Any]:
    """The specs with the devices that they will run on: the device is part of what a run is called."""
    import dataclasses

    from plastibench.utils.runtime import resolve_device

    return [
        dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=resolve_device(spec.run.device)))
        for spec in specs
    ]


def _runs_flag(known: argparse.Namespace) -> str:
    return "" if known.runs_dir == Path("runs") else f" --runs-dir {known.runs_dir}"


def _requested(known: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What a spec file and the flags ask for, as raw tables; flags win."""
    from plastibench.config.spec import PARTS, read_file

    tables: dict[str, dict[str, Any]] = {part: {} for part in (*PARTS, "run")}
    if known.spec is not None:
        tables.update(read_file(known.spec))
    for part in PARTS:
        name = getattr(known, part)
        if name is not None and name != tables[part].get("name"):
            tables[part] = {"name": name}
    tables["intervention"].setdefault("name", "none")
    for name in RUN_OPTIONS:
        if getattr(known, name) is not None:
            tables["run"][name] = getattr(known, name)
    read_option_flags(known.rest, tables)
    return tables


def specs_of(tables: dict[str, dict[str, Any]]) -> list[Any]:
    """Every combination of seeds and interventions, as checked specs."""
    from plastibench.config.spec import RunSpec, seeds_of

    values = {part: {k: v for k, v in table.items() if k != "name"} for part, table in tables.items()}
    names = listed(tables["intervention"]["name"])
    seeds = seeds_of(values["run"].pop("seed", 0))
    return [
        RunSpec.make(
            tables["env"]["name"],
            tables["agent"]["name"],
            name,
            env_options=values["env"],
            agent_options=values["agent"],
            intervention_options=_fitting(name, names, values["intervention"]),
            seed=seed,
            **values["run"],
        )
        for seed in seeds
        for name in names
    ]


def _fitting(name: str, names: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Of several interventions, each takes the options that it has; an option that none has is an error."""
    if len(names) == 1:
        return values

    def has(intervention: str, option: str) -> bool:
        return field_name(option) in options_of(registry.interventions[intervention].load())

    for option in values:
        if not any(has(other, option) for other in names):
            raise UserError(f"none of {', '.join(names)} has an option '{option}'")
    return {option: value for option, value in values.items() if has(name, option)}


def _help_for(parser: argparse.ArgumentParser, tables: dict[str, dict[str, Any]]) -> None:
    print(parser.format_help())
    names: dict[str, list[str]] = {part: listed(tables[part].get("name", "")) for part in tables if part != "run"}
    if not (names["env"] or names["agent"] or names["intervention"] != ["none"]):
        print("Name an env, an agent or an intervention before --help to see its options, for example:")
        print("  plastibench run cl-digits --agent vit-nano --intervention rnr --help")
        return
    for part, chosen in names.items():
        for name in chosen:
            _print_options(part, KINDS[f"{part}s"][name])


def _print_options(part: str, entry: registry.Entry) -> None:
    from plastibench.config.options import build

    cls = entry.load()
    defaults = as_dict(build(cls, entry.defaults, f"{part} {entry.name}"))
    print(f"{part} {entry.name}: {entry.summary}")
    for name, field in options_of(cls).items():
        flag = f"--{part}.{flag_name(name)} {describe_type(cls, name)}"
        value = defaults.get(name, "none")
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        text = f"{field.metadata.get('help', '')} ({_range(field)}default {shown if shown != '' else 'empty'})"
        print(f"  {flag}\n{textwrap.fill(text, 110, initial_indent=' ' * 8, subsequent_indent=' ' * 8)}")
    print()


def _range(field: dataclasses.Field[Any]) -> str:
    low, high = (None if (end := field.metadata.get(key)) is None else f"{end:,}" for key in ("low", "high"))
    if low is not None and high is not None:
        return f"{low} to {high}, "
    return f"at least {low}, " if low is not None else f"at most {high}, " if high is not None else ""


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``resume``."""
    parser.add_argument("id", help="a folder name below --runs-dir")
    parser.add_argument("--threads", type=count, default=0, help="CPU threads (default: 1 for a small network)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--for-command", default="", help=argparse.SUPPRESS)  # one run of many; a pool sees to the rest
    add_places(parser)
    parser.set_defaults(do=_resume)


def _resume(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    path = known.runs_dir / known.id / "spec.toml"
    if not path.is_file():
        there = [found.parent.name for found in known.runs_dir.glob("*/spec.toml")]
        raise UserError(f"no run '{known.id}' in {known.runs_dir}{did_you_mean(known.id, there)}")
    from plastibench import leaderboard
    from plastibench.config.spec import RunSpec
    from plastibench.training.runner import Interrupted, run

    (spec,) = on_devices([RunSpec.from_toml(path.read_text(encoding="utf-8"), str(path))])
    if spec.id != known.id:
        raise UserError(
            f"{path} describes the run {spec.id}: its folder was renamed, or the options of runs have changed since; "
            f"give the folder that name{'' if '/' not in known.id else ' and its parent with --runs-dir'}, "
            f"or begin anew with plastibench run --spec {path}"
        )
    try:
        result = run(
            spec,
            runs_dir=known.runs_dir,
            data_dir=known.data_dir,
            quiet=known.quiet,
            threads=known.threads,
            command=known.for_command,
        )
    except Interrupted as stopped:
        print(f"plastibench: {stopped}; the same command continues it", file=sys.stderr)
        return 130
    print(f"\n{leaderboard.comparison([result])}\n")
    if not known.for_command:
        update_board(known.runs_dir)
    return 0
