"""``list``, ``info``, ``leaderboard`` and ``bench``: what there is, what came of it, how fast it is."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastibench.cli.shared import (
    KINDS,
    add_places,
    count,
    import_plugin,
    must_have_folder,
    read_option_flags,
    write_board,
)
from plastibench.config.errors import UserError

if TYPE_CHECKING:
    from plastibench.leaderboard.standings import Standings


def add_list(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``list``."""
    parser.add_argument("kind", nargs="?", choices=[*KINDS, "metrics"], help="what to list (default: everything)")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.set_defaults(do=_list)


def _list(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    from plastibench.metrics import METRICS

    tables = {kind: [[name, entry.summary] for name, entry in names.all().items()] for kind, names in KINDS.items()}
    tables["metrics"] = [list(row) for row in METRICS.items()]
    if known.kind == "interventions":
        tables["interventions"] = _with_facts()
    for kind, rows in tables.items():
        if known.kind in (None, kind):
            print(f"{kind}:")
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
            for *cells, summary in rows:
                padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
                print("  ".join(["", *padded, summary]))
            print()
    return 0


def _with_facts() -> list[list[str]]:
    """Name, kind, hooks, cost and summary of every intervention, under a header."""
    from plastibench.interventions.catalogue import facts, hooks_of

    rows = [["name", "kind", "hooks", "cost", "what it does (source)"]]
    for name, entry in KINDS["interventions"].all().items():
        known = facts(entry)
        hooks = known.hooks if known else hooks_of(entry.load())
        shown = [known.kind, known.cost] if known else ["your own", "?"]
        rows.append([name, shown[0], " ".join(hooks) or "–", shown[1], entry.summary])
    return rows


def add_info(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``info``."""
    add_places(parser)
    parser.set_defaults(do=_info)


def _info(known: argparse.Namespace) -> int:
    import torch

    from plastibench.utils import provenance

    print("versions")
    for name, version in provenance.versions().items():
        print(f"  {name:14}{version}")
    if provenance.commit():
        print(f"  {'commit':14}{provenance.commit()}")
    print("devices")
    processor = provenance.hardware("cpu")["processor"]
    print(f"  {'cpu':14}{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        print(f"  {f'cuda:{index}':14}{torch.cuda.get_device_name(index)}")
    print(f"data in {known.data_dir}")
    there = sorted(path.name for path in known.data_dir.iterdir()) if known.data_dir.is_dir() else []
    print(f"  {', '.join(there) or 'nothing yet; digits need nothing'}")
    runs = len(list(known.runs_dir.glob("**/result.json")))
    print(f"runs in {known.runs_dir}\n  {runs} finished")
    return 0


def add_leaderboard(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``leaderboard``."""
    parser.add_argument("words", nargs="*", metavar="add FILE", help="check a result.json from elsewhere, and add it")
    parser.add_argument(
        "--format", choices=["table", "markdown", "csv", "json", "html"], default="table", help="default table"
    )
    parser.add_argument("--out", type=Path, help="write into this file instead")
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write it, with pictures, for tensorboard --logdir RUNS_DIR (run and sweep do so at their end)",
    )
    parser.add_argument("--sort", default="final", metavar="COLUMN", help="best first by this column (default final)")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="CONDITION",
        help="keep these rows: env=cl-*, 'intervention=rnr*,none', 'seeds>=3'; several must all hold",
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where results are (default runs)")
    parser.set_defaults(do=_leaderboard)


def _leaderboard(known: argparse.Namespace) -> int:
    if known.words:
        return _add(known.words, known.runs_dir)
    from plastibench.leaderboard import load
    from plastibench.leaderboard import text as text_format
    from plastibench.leaderboard.standings import standings
    from plastibench.utils.atomic_io import write_text

    must_have_folder(known.out)
    if known.tensorboard:
        if known.filter or known.out or known.sort != "final" or known.format != "table":
            raise UserError(
                "--tensorboard writes the whole leaderboard; leave --filter, --sort, --format and --out away"
            )
        print(write_board(known.runs_dir, load(known.runs_dir), drawn=True))
        return 0
    shown = standings(load(known.runs_dir, lean=known.format != "html"), sorted_by=known.sort, filters=known.filter)
    if not shown.tables:
        raise UserError(f"no row fulfils {' and '.join(known.filter)}; see plastibench leaderboard without --filter")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    draw: dict[str, Callable[[], str]] = {
        "table": lambda: text_format.table(shown, width),
        "markdown": lambda: text_format.markdown(shown),
        "csv": lambda: text_format.as_csv(shown),
        "json": lambda: text_format.as_json(shown),
        "html": lambda: _page(shown),
    }
    text = draw[known.format]()
    if known.out is None:
        print(text)
    else:
        write_text(known.out, f"{text}\n")
        print(known.out)
    return 0


def _page(shown: Standings) -> str:
    from plastibench.leaderboard.html import page
    from plastibench.plotting.leaderboard_plots import pictures

    try:
        drawn = pictures(shown)
    except UserError as error:
        print(f"plastibench: no pictures in the page: {error}", file=sys.stderr)
        drawn = {}
    return page(shown, drawn)


def _add(words: list[str], runs_dir: Path) -> int:
    from plastibench.leaderboard.validation import add

    action, *files = words
    if action != "add" or not files:
        raise UserError(f"leaderboard {' '.join(words)}: expected leaderboard add FILE, or no word at all")
    for file in files:
        place, unchecked = add(Path(file), runs_dir)
        print(place)
        for note in unchecked:
            print(f"plastibench: {place}: {note}", file=sys.stderr)
    return 0


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``bench``."""
    parser.add_argument("env", nargs="?", default="cl-digits", help="task stream (default cl-digits)")
    parser.add_argument("--agent", default="vit-nano", help="agent (default vit-nano)")
    parser.add_argument("--intervention", default="rnr", help="intervention whose cost is measured (default rnr)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument("--updates", type=count, default=5, help="updates per measurement (default 5)")
    parser.add_argument("--rounds", type=count, default=20, help="rounds of four measurements, 2 at least (default 20)")
    parser.add_argument("--threads", type=count, default=0, help="CPU threads (default: 1 for a small network)")
    add_places(parser)
    parser.set_defaults(do=_bench)


def _bench(known: argparse.Namespace) -> int:
    if known.updates < 1 or known.rounds < 2:
        raise UserError("bench: at least --updates 1 and --rounds 2")
    for part in ("env", "agent", "intervention"):
        KINDS[f"{part}s"][getattr(known, part)]
    from plastibench.config.spec import RunSpec
    from plastibench.sweeps.benchmark import benchmark
    from plastibench.utils.runtime import resolve_device

    options: dict[str, dict[str, Any]] = {part: {} for part in ("env", "agent", "intervention", "run")}
    read_option_flags(known.rest, options)
    spec = RunSpec.make(
        known.env,
        known.agent,
        known.intervention,
        env_options=options["env"],
        agent_options=options["agent"],
        intervention_options=options["intervention"],
        **{**options["run"], "device": resolve_device(known.device)},
    )
    print(benchmark(spec, known.data_dir, known.updates, known.rounds, known.threads))
    return 0
