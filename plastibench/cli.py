"""The command line. Commands only: what they do lives elsewhere and is imported when it is needed."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from plastibench import __version__, diagnose_command, registry
from plastibench.errors import RunError, UserError, did_you_mean
from plastibench.options import as_dict, describe_type, field_name, flag_name, options_of

KINDS = {"envs": registry.envs, "agents": registry.agents, "interventions": registry.interventions}
_RUN_OPTIONS = (
    *("seed", "every", "roles", "until", "offline_updates"),
    *("representative", "device", "deterministic", "metrics"),
)
_RUN_FLAGS = [
    f"--{name.replace('_', '-')}"
    for name in (
        *("agent", "intervention", "spec", "plugin", *_RUN_OPTIONS),
        *("jobs", "threads", "quiet", "runs-dir", "data-dir", "help"),
    )
]
_EXAMPLES = """\
examples:
  plastibench run cl-digits --agent vit-nano --intervention none,reset,rnr
  plastibench run cl-cifar100 --agent vit-tiny --intervention rnr --seed 0..2
  plastibench run relabel-digits --agent mlp --intervention rnr --intervention.quantile 0.2
  plastibench run cl-digits --agent vit-nano --intervention rnr --help
  plastibench leaderboard
  tensorboard --logdir runs"""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into ours."""
        found = re.search(r"argument command: invalid choice: '([^']*)'", message)
        if found:
            message = f"no command '{found.group(1)}'{did_you_mean(found.group(1), COMMANDS)} ({', '.join(COMMANDS)})"
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 the run failed, 2 the input is wrong, 130 stopped on request."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal without Greek letters shows question marks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        sys.exit(_dispatch(arguments))
    except UserError as error:
        _complain(error)
        sys.exit(2)
    except RunError as error:
        _complain(error)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("plastibench: stopped", file=sys.stderr)
        sys.exit(130)


def _complain(error: Exception) -> None:
    print(f"plastibench: {' '.join(str(error).split())}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    parser = Parser(
        prog="plastibench",
        description="Gym, benchmark and toolbox for plasticity loss.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plastibench {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (add, help_line) in COMMANDS.items():
        add(commands.add_parser(name, help=help_line, description=help_line, add_help=name != "run"))
    arguments, options = _without_options(arguments)
    known, rest = parser.parse_known_args(arguments)
    rest = options + rest
    if rest and known.command not in ("run", "bench", "survey", "diagnose"):
        raise UserError(f"unknown argument '{rest[0]}' (plastibench {known.command} --help)")
    known.rest = rest
    return int(known.do(known))


def _without_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments, and apart from them ``--env.epochs 5`` and the like: argparse would take the 5 for the env."""
    kept: list[str] = []
    options: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--[a-z]+\.", word):
            kept.append(word)
            continue
        options.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            options.append(rest.pop(0))
    return kept, options


# run -------------------------------------------------------------------------------------------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("env", nargs="?", help="task stream (plastibench list envs)")
    parser.add_argument("--agent", help="agent (plastibench list agents)")
    parser.add_argument("--intervention", help="intervention, or several: none,reset,rnr (default none)")
    parser.add_argument("--seed", help="seed, or several: 0,1,2 or 0..4 (default 0)")
    parser.add_argument("--every", help="intervene every so many updates; 0: at task switches (default)")
    parser.add_argument("--roles", help="networks that are intervened on: critic,actor (default all)")
    parser.add_argument("--until", help="no intervention after so many updates (default: always)")
    parser.add_argument("--offline-updates", help="rl: extra updates right after an intervention (default 0)")
    parser.add_argument("--representative", help="samples that interventions see (default 2048)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU where there is one)")
    parser.add_argument("--deterministic", action="store_const", const=True, help="only deterministic kernels")
    parser.add_argument(
        "--metrics", help="measure more: activity,gradients,ranks,weights,curvature,probes,all, or names of metrics"
    )
    parser.add_argument("--spec", type=Path, metavar="FILE", help="read names and options from a TOML file; flags win")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--jobs", type=_count, default=1, help="processes at a time, where there are several runs")
    parser.add_argument("--threads", type=_count, default=0, help="CPU threads (default: 1 for a small network)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    _add_places(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the options of all that is named")
    parser.set_defaults(do=_run, parser=parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where results go (default runs)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("PLASTIBENCH_DATA", "data")),
        help="where data sets are (default data, or $PLASTIBENCH_DATA)",
    )


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
    for name in _listed(tables["intervention"]["name"]):
        registry.interventions[name]
    specs = _specs(tables)

    if known.jobs > 1 and len(specs) > 1:
        return _pool(_on_devices(specs), known)
    from plastibench import leaderboard
    from plastibench.runner import Interrupted, run

    found = []
    for number, spec in enumerate(specs):
        try:
            result = run(
                spec,
                runs_dir=known.runs_dir,
                data_dir=known.data_dir,
                quiet=known.quiet,
                threads=known.threads,
                announce=f"run {number + 1} of {len(specs)}: " if len(specs) > 1 else "",
            )
        except Interrupted as stopped:
            print(f"plastibench: {stopped}; the same command continues it", file=sys.stderr)
            return 130
        found.append(result)
    print(f"\n{leaderboard.comparison(found)}\n")
    print(f"results:     {known.runs_dir}/<run>/result.json, all runs: plastibench leaderboard{_runs_flag(known)}")
    print(f"TensorBoard: tensorboard --logdir {known.runs_dir}")
    return 0


def _pool(specs: Sequence[Any], known: argparse.Namespace) -> int:
    """Work through the specs with several processes; compare what is complete."""
    from plastibench import leaderboard, results
    from plastibench.process import stop_requests
    from plastibench.sweep import FAILURE, work_through

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
    paths = [known.runs_dir / job.spec.id / "result.json" for job in pool]
    found = [results.read(path) for path in paths if path.exists()]
    if found:
        print(f"\n{leaderboard.leaderboard(found)}\n")
    for job in pool:
        if job.state == "failed":
            print(f"plastibench: {job.spec.id} failed: {job.line} ({job.spec.id}/{FAILURE})", file=sys.stderr)
    if stop:
        print("plastibench: stopped; the same command continues", file=sys.stderr)
        return 130
    return 1 if any(job.state == "failed" for job in pool) else 0


def _add_survey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", nargs="?", default="cl-digits", help="task stream (default cl-digits)")
    parser.add_argument("--agent", default="vit-nano", help="agent (default vit-nano)")
    parser.add_argument("--intervention", help="only these: none,reset,rnr (default: every one that is registered)")
    parser.add_argument("--seed", default="0..2", help="seeds (default 0..2)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes at a time (default: cores)")
    parser.add_argument("--out", type=Path, help="write the table into this Markdown file, too")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--threads", type=_count, default=0, help="CPU threads per process (default: cores / jobs)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    _add_places(parser)
    parser.set_defaults(do=_survey)


def _survey(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    from plastibench import checkpoint, results, survey

    known.jobs = max(1, known.jobs)
    names = _listed(known.intervention) if known.intervention else survey.every_intervention()
    tables: dict[str, dict[str, Any]] = {part: {} for part in ("env", "agent", "intervention")}
    read_option_flags(known.rest, tables)
    run = {"seed": known.seed, "device": known.device}
    named = {"env": known.env, "agent": known.agent, "intervention": names}
    for part, name in named.items():
        tables[part]["name"] = name
    specs = _on_devices(_specs({**tables, "run": run}))
    status = _pool(specs, known)
    if status == 130:
        return status
    first = {spec.intervention[0]: spec for spec in reversed(specs)}
    paths = {spec.id: known.runs_dir / spec.id / "result.json" for spec in specs}
    found = [results.read(path) for path in paths.values() if path.exists()]
    costs = survey.measure_costs([first[name] for name in names], known.data_dir, known.runs_dir / survey.COSTS)
    table = survey.table(found, costs, _failures(specs, known.runs_dir))
    print(f"\n{table}\n\n{textwrap.fill(survey.LEGEND, 110)}")
    if known.out:
        checkpoint.write_text(known.out, f"{table}\n\n{textwrap.fill(survey.LEGEND, 110)}\n")
    return 0


def _failures(specs: Sequence[Any], runs_dir: Path) -> dict[str, str]:
    """Names of interventions whose runs failed, with the last line that each said."""
    from plastibench.sweep import FAILURE

    found = {}
    for spec in specs:
        note = runs_dir / spec.id / FAILURE
        if note.exists():
            last = note.read_text(encoding="utf-8").strip().splitlines()[-1]
            found[spec.intervention[0]] = last.removeprefix("plastibench: ")
    return found


def _on_devices(specs: Sequence[Any]) -> list[Any]:
    """The specs with the devices that they will run on: the device is part of what a run is called."""
    import dataclasses

    from plastibench.process import resolve_device

    return [
        dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=resolve_device(spec.run.device)))
        for spec in specs
    ]


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a TOML file of tables [env], [agent], [run] and [[grid]]")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes at a time (default: cores)")
    parser.add_argument("--list", action="store_true", help="only show the runs and which of them are complete")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--threads", type=_count, default=0, help="CPU threads per process (default: cores / jobs)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    _add_places(parser)
    parser.set_defaults(do=_sweep)


def _sweep(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    from plastibench.sweep import FAILURE, read

    known.jobs = max(1, known.jobs)
    specs = _on_devices(read(known.file))
    if known.list:
        for spec in specs:
            folder = known.runs_dir / spec.id
            files = {"result.json": "complete", FAILURE: "failed", "checkpoint.pt": "begun"}
            state = next((state for file, state in files.items() if (folder / file).exists()), "missing")
            print(f"{state:8}  {spec.id}")
        return 0
    return _pool(specs, known)


def _runs_flag(known: argparse.Namespace) -> str:
    return "" if known.runs_dir == Path("runs") else f" --runs-dir {known.runs_dir}"


def _requested(known: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What a spec file and the flags ask for, as raw tables; flags win."""
    from plastibench.spec import PARTS, read_file

    tables: dict[str, dict[str, Any]] = {part: {} for part in (*PARTS, "run")}
    if known.spec is not None:
        tables.update(read_file(known.spec))
    for part in PARTS:
        name = getattr(known, part)
        if name is not None and name != tables[part].get("name"):
            tables[part] = {"name": name}
    tables["intervention"].setdefault("name", "none")
    for name in _RUN_OPTIONS:
        if getattr(known, name) is not None:
            tables["run"][name] = getattr(known, name)
    read_option_flags(known.rest, tables)
    return tables


def read_option_flags(arguments: Sequence[str], tables: dict[str, dict[str, Any]]) -> None:
    """Put ``--env.epochs 5`` and the like into the tables of env, agent and intervention."""
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        part, dot, option = flag.removeprefix("--").partition(".")
        if not (flag.startswith("--") and dot and part in tables):
            raise UserError(f"unknown argument '{flag}'{did_you_mean(flag, _RUN_FLAGS)} (plastibench run --help)")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag} needs a value")
            value = rest.pop(0)
        if (part, option) == ("intervention", "roles"):  # of every intervention, so it belongs to the run
            part = "run"
        tables[part][option] = value


def _specs(tables: dict[str, dict[str, Any]]) -> list[Any]:
    """Every combination of seeds and interventions, as checked specs."""
    from plastibench.spec import RunSpec, seeds_of

    values = {part: {k: v for k, v in table.items() if k != "name"} for part, table in tables.items()}
    names = _listed(tables["intervention"]["name"])
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


def _listed(names: str | list[str]) -> list[str]:
    listed = names.split(",") if isinstance(names, str) else list(names)
    found = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if names != "" and not found:
        raise UserError(f"'{names}' names no intervention")
    return found


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number")
    return int(text)


def import_plugin(plugin: str) -> None:
    """Import a user's own module or file, which registers what it brings."""
    try:
        if plugin.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(plugin).stem, plugin)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up there
            spec.loader.exec_module(module)
        else:
            importlib.import_module(plugin)
    except (Exception, SystemExit) as error:  # whatever is wrong in it is the user's to mend: name it and its kind
        raise UserError(f"--plugin {plugin} does not load: {type(error).__name__}: {error}") from error


def _help_for(parser: argparse.ArgumentParser, tables: dict[str, dict[str, Any]]) -> None:
    print(parser.format_help())
    names: dict[str, list[str]] = {part: _listed(tables[part].get("name", "")) for part in tables if part != "run"}
    if not (names["env"] or names["agent"] or names["intervention"] != ["none"]):
        print("Name an env, an agent or an intervention before --help to see its options, for example:")
        print("  plastibench run cl-digits --agent vit-nano --intervention rnr --help")
        return
    for part, chosen in names.items():
        for name in chosen:
            _print_options(part, KINDS[f"{part}s"][name])


def _print_options(part: str, entry: registry.Entry) -> None:
    from plastibench.options import build

    cls = entry.load()
    defaults = as_dict(build(cls, entry.defaults, f"{part} {entry.name}"))
    print(f"{part} {entry.name}: {entry.summary}")
    for name, field in options_of(cls).items():
        flag = f"--{part}.{flag_name(name)} {describe_type(cls, name)}"
        value = defaults.get(name, "none")
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        text = f"{field.metadata.get('help', '')} (default {shown if shown != '' else 'empty'})"
        print(f"  {flag}\n{textwrap.fill(text, 110, initial_indent=' ' * 8, subsequent_indent=' ' * 8)}")
    print()


# The other commands ----------------------------------------------------------------------------------------------


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="a folder name below --runs-dir")
    parser.add_argument("--threads", type=_count, default=0, help="CPU threads (default: 1 for a small network)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    _add_places(parser)
    parser.set_defaults(do=_resume)


def _resume(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    path = known.runs_dir / known.id / "spec.toml"
    if not path.is_file():
        there = [found.parent.name for found in known.runs_dir.glob("*/spec.toml")]
        raise UserError(f"no run '{known.id}' in {known.runs_dir}{did_you_mean(known.id, there)}")
    from plastibench import leaderboard
    from plastibench.runner import Interrupted, run
    from plastibench.spec import RunSpec

    try:
        result = run(
            RunSpec.from_toml(path.read_text(encoding="utf-8")),
            runs_dir=known.runs_dir,
            data_dir=known.data_dir,
            quiet=known.quiet,
            threads=known.threads,
        )
    except Interrupted as stopped:
        print(f"plastibench: {stopped}; the same command continues it", file=sys.stderr)
        return 130
    print(f"\n{leaderboard.comparison([result])}\n")
    return 0


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=[*KINDS, "metrics"], help="what to list (default: everything)")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.set_defaults(do=_list)


def _list(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    from plastibench.metrics import METRICS

    tables = {kind: {name: entry.summary for name, entry in names.all().items()} for kind, names in KINDS.items()}
    tables["metrics"] = METRICS
    for kind, entries in tables.items():
        if known.kind in (None, kind):
            print(f"{kind}:")
            width = max(map(len, entries))
            for name, summary in entries.items():
                print(f"  {name:{width}}  {summary}")
            print()
    return 0


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_places(parser)
    parser.set_defaults(do=_info)


def _info(known: argparse.Namespace) -> int:
    import torch

    from plastibench import machine

    print("versions")
    for name, version in machine.versions().items():
        print(f"  {name:14}{version}")
    if machine.commit():
        print(f"  {'commit':14}{machine.commit()}")
    print("devices")
    print(
        f"  {'cpu':14}{machine.hardware('cpu')['processor']}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    for index in range(torch.cuda.device_count()):
        print(f"  {f'cuda:{index}':14}{torch.cuda.get_device_name(index)}")
    print(f"data in {known.data_dir}")
    there = sorted(path.name for path in known.data_dir.iterdir()) if known.data_dir.is_dir() else []
    print(f"  {', '.join(there) or 'nothing yet; digits need nothing'}")
    runs = len(list(known.runs_dir.glob("**/result.json")))
    print(f"runs in {known.runs_dir}\n  {runs} finished")
    return 0


def _add_leaderboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=["table", "markdown"], default="table", help="default table")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where results are (default runs)")
    parser.set_defaults(do=_leaderboard)


def _leaderboard(known: argparse.Namespace) -> int:
    from plastibench import leaderboard

    print(leaderboard.leaderboard(leaderboard.load(known.runs_dir), markdown=known.format == "markdown"))
    return 0


def _add_figure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="a .png, .svg or .pdf file")
    parser.add_argument("--env", help="only runs on this task stream")
    parser.add_argument("--intervention", help="only these rows of the leaderboard: 'none,reset,rnr tau=0.5'")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where results are (default runs)")
    parser.set_defaults(do=_figure)


def _figure(known: argparse.Namespace) -> int:
    from plastibench import figures, leaderboard

    found = leaderboard.load(known.runs_dir)
    for part in ("env", "intervention"):
        wanted = getattr(known, part)
        if wanted is not None:
            names = _listed(wanted)
            there = sorted({leaderboard.label(result, part) for result in found})
            for name in sorted(set(names) - set(there)):
                raise UserError(
                    f"no finished run of {part} '{name}' in {known.runs_dir} (there are {', '.join(there)})"
                )
            found = [result for name in names for result in found if leaderboard.label(result, part) == name]
    figures.overview(found, known.out)
    print(known.out)
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", nargs="?", default="cl-digits", help="task stream (default cl-digits)")
    parser.add_argument("--agent", default="vit-nano", help="agent (default vit-nano)")
    parser.add_argument("--intervention", default="rnr", help="intervention whose cost is measured (default rnr)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument("--updates", type=_count, default=5, help="updates per measurement (default 5)")
    parser.add_argument("--rounds", type=_count, default=20, help="rounds of four measurements (default 20)")
    parser.add_argument("--threads", type=_count, default=0, help="CPU threads (default: 1 for a small network)")
    _add_places(parser)
    parser.set_defaults(do=_bench)


def _bench(known: argparse.Namespace) -> int:
    for part in ("env", "agent", "intervention"):
        KINDS[f"{part}s"][getattr(known, part)]
    from plastibench.benchmark import benchmark
    from plastibench.process import resolve_device
    from plastibench.spec import RunSpec

    options: dict[str, dict[str, Any]] = {part: {} for part in ("env", "agent", "intervention")}
    read_option_flags(known.rest, options)
    spec = RunSpec.make(
        known.env,
        known.agent,
        known.intervention,
        env_options=options["env"],
        agent_options=options["agent"],
        intervention_options=options["intervention"],
        device=resolve_device(known.device),
    )
    print(benchmark(spec, known.data_dir, max(1, known.updates), max(2, known.rounds), known.threads))
    return 0


COMMANDS = {
    "run": (_add_run, "run interventions on a task stream, and compare them"),
    "sweep": (_add_sweep, "work through a grid of runs with several processes"),
    "survey": (_add_survey, "every intervention on one scenario: what it brings, and what it costs"),
    "resume": (_add_resume, "continue an interrupted run"),
    "list": (_add_list, "list envs, agents, interventions and metrics"),
    "info": (_add_info, "show versions, devices and data found"),
    "figure": (_add_figure, "draw finished runs: accuracy by task, and drop against final accuracy"),
    "bench": (_add_bench, "time the harness against a plain PyTorch loop, and an intervention"),
    "leaderboard": (_add_leaderboard, "compare all finished runs"),
    "diagnose": (diagnose_command.add, "examine the plasticity of a network, layer by layer"),
}
