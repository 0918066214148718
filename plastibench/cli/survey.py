"""``sweep`` and ``survey``: many runs, by several processes."""

from __future__ import annotations

import argparse
import os
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastibench.cli.run import on_devices, specs_of, work_pool
from plastibench.cli.shared import (
    add_places,
    count,
    import_plugin,
    listed,
    must_have_folder,
    positive,
    read_option_flags,
)
from plastibench.config.errors import UserError, did_you_mean

SIZES = ("digits", "paper")
_THREADS = "CPU threads per process (default: 1 for a small network, cores / jobs for a large one)"


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sweep``."""
    parser.add_argument(
        "file",
        help="a TOML file of tables [env], [agent], [intervention], [run] and [[grid]], in which lists are axes: "
        "name = ['none', 'rnr'] in [intervention]; or a ready one: fig2, fig3, fig4, fig5",
    )
    parser.add_argument(
        "--size", choices=SIZES, default="digits", help="of a ready one: on digits, or as in the paper (default digits)"
    )
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, help="processes at a time (default: cores)"
    )
    parser.add_argument("--list", action="store_true", help="only show the runs and which of them are complete")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="only write specs, and print the ids of what is missing, for a scheduler that runs plastibench resume ID",
    )
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--threads", type=count, default=0, help=_THREADS)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_places(parser)
    parser.set_defaults(do=_sweep)


def _sweep(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    from plastibench.results.files import read_result_if_complete
    from plastibench.sweeps.pool import FAILURE, prepare, read

    specs = on_devices(read(_file(known.file, known.size)))
    if known.prepare:
        for job in prepare(specs, known.runs_dir):
            if job.state != "complete":
                print(job.spec.id)
        return 0
    if known.list:
        for spec in specs:
            folder = known.runs_dir / spec.id
            files = {"result.json": "damaged", FAILURE: "failed", "checkpoint.pt": "begun"}
            state = next((state for file, state in files.items() if (folder / file).exists()), "missing")
            state = "complete" if read_result_if_complete(folder) is not None else state
            print(f"{state:8}  {spec.id}")
        return 0
    return work_pool(specs, known)


def _file(name: str, size: str) -> Path:
    """The file of that name, or the ready one."""
    ready = Path(__file__).parents[1] / "sweeps" / f"{name}-{size}.toml"
    if not Path(name).exists() and "." not in name:
        if not ready.exists():
            names = [path.stem.removesuffix(f"-{size}") for path in sorted(ready.parent.glob(f"*-{size}.toml"))]
            raise UserError(f"no file and no ready sweep '{name}'{did_you_mean(name, names)} ({', '.join(names)})")
        return ready
    return Path(name)


def add_survey(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``survey``."""
    parser.add_argument("env", nargs="?", default="cl-digits", help="task stream (default cl-digits)")
    parser.add_argument("--agent", default="vit-nano", help="agent (default vit-nano)")
    parser.add_argument("--intervention", help="only these: none,reset,rnr (default: every one that is registered)")
    parser.add_argument("--seed", default="0..2", help="seeds (default 0..2)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, help="processes at a time (default: cores)"
    )
    parser.add_argument("--out", type=Path, help="write the table into this Markdown file, too")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument("--threads", type=count, default=0, help=_THREADS)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_places(parser)
    parser.set_defaults(do=_survey)


def _survey(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    from plastibench.leaderboard import acts, origin
    from plastibench.results.files import read_result_if_complete
    from plastibench.sweeps import survey
    from plastibench.utils import atomic_io

    must_have_folder(known.out)
    names = listed(known.intervention) if known.intervention else survey.every_intervention()
    named = {"env": known.env, "agent": known.agent, "intervention": names}
    tables: dict[str, dict[str, Any]] = {part: {"name": name} for part, name in named.items()}
    tables["run"] = {}
    read_option_flags(known.rest, tables)
    tables["run"] |= {"seed": known.seed, "device": known.device}
    specs = on_devices(specs_of(tables))
    status = work_pool(specs, known)
    if status == 130:
        return status
    first = {spec.intervention[0]: spec for spec in reversed(specs)}
    there = (read_result_if_complete(known.runs_dir / spec.id) for spec in specs)
    found = [result for result in there if result is not None]
    if not found:
        return 1
    timed = [] if acts(found[0]) else [first[name] for name in names]
    costs = survey.measure_costs(timed, known.data_dir, known.runs_dir / survey.COSTS)
    table = survey.table(found, costs, _failures(specs, known.runs_dir))
    legend = textwrap.fill(f"{survey.legend(found)} {origin(found)}", 110)
    print(f"\n{table}\n\n{legend}")
    if known.out:
        command = shlex.join(["plastibench", *known.arguments])
        atomic_io.write_text(known.out, f"`{command}`\n\n{table}\n\n{legend}\n")
    return 0


def _failures(specs: Sequence[Any], runs_dir: Path) -> list[str]:
    """A sentence for each intervention, or seed of it, whose runs failed, with the last line that each said."""
    from plastibench.results.files import read_result_if_complete
    from plastibench.sweeps.pool import FAILURE

    complete = {spec.id for spec in specs if read_result_if_complete(runs_dir / spec.id) is not None}
    some = {spec.intervention[0] for spec in specs if spec.id in complete}
    found = {}
    for spec in specs:
        note, name = runs_dir / spec.id / FAILURE, spec.intervention[0]
        if spec.id not in complete and note.exists():
            _, _, last = note.read_text(encoding="utf-8").strip().rpartition("\n")
            what = f"`{name}` failed with seed {spec.run.seed}" if name in some else f"`{name}` does not run here"
            found[what] = last.removeprefix("plastibench: ")
    return [f"{what}: {reason}" for what, reason in found.items()]
