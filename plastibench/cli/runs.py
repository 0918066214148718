"""The command ``plastibench runs``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plastibench.cli.arguments import add_paths, add_plugin, add_wide
from plastibench.cli.board_update import update_board
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.config.errors import UserError, did_you_mean
from plastibench.results.tags import check_tag, write_tags
from plastibench.utils.tables import fitting_columns, hidden_columns, terminal_width, text_table
from plastibench.utils.wording import plural

if TYPE_CHECKING:
    from plastibench.sweeps.run_folders import RunFolder

_ACTIONS = ("list", "status", "tag", "rm", "archive", "restore")
_HELP = """\
actions:
  list     [RUN ...]        list runs
  status   [RUN ...]        count runs by state, and show the progress of unfinished runs
  tag TAG  RUN ...          add a tag (--remove: remove it); the table over all settings ignores runs tagged 'trial'
  rm       RUN ...          delete runs, after asking for confirmation
  archive  RUN ...          pack runs into RUNS_DIR/archive, which the leaderboard and TensorBoard ignore
  restore  [RUN ...]        unpack archived runs; without RUN, list them

RUN is an id, the first characters of the digest at its end, or a pattern such as '*rnr*'. Filters can be used instead.

examples:
  plastibench runs list --intervention 'rnr*' --state interrupted
  plastibench runs tag trial 3e1522a7 8b934901
  plastibench runs rm --state failed
  plastibench runs archive 'relabel-digits_*'"""
_FILTERS = {
    "env": "only this env: a name, a name with options (as in the leaderboard), or a pattern",
    "agent": "only this agent",
    "intervention": "only this intervention",
    "seed": "only this seed",
    "state": "only this state: running, interrupted, failed, waiting, complete, damaged",
    "tag": "only runs with this tag",
}


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.intermixed = True
    parser.usage = "plastibench runs ACTION [RUN ...] [options]"
    parser.epilog = _HELP
    parser.add_argument("action", metavar="ACTION", choices=_ACTIONS, help=", ".join(_ACTIONS))
    parser.add_argument("run", metavar="RUN", nargs="*", help="runs (see below)")
    which = parser.add_argument_group("filters")
    for name, help in _FILTERS.items():
        which.add_argument(f"--{name}", metavar=name.upper(), help=help)
    how = parser.add_argument_group("execution")
    how.add_argument("--remove", action="store_true", help="tag: remove the tag")
    how.add_argument("--yes", action="store_true", help="rm: do not ask for confirmation")
    add_wide(how)
    add_plugin(how)
    add_paths(parser, data=False)


def execute(args: argparse.Namespace) -> int:
    """List or change runs."""
    import_plugins(args.plugin)
    from plastibench.sweeps.run_folders import STATES, find_runs, select

    if args.state is not None and args.state not in STATES:
        raise UserError(f"--state {args.state}: unknown state{did_you_mean(args.state, STATES)} ({', '.join(STATES)})")
    if args.action == "restore":
        return _restore(args.run, args.runs_dir)
    tag = ""
    if args.action == "tag":
        if not args.run:
            raise UserError("runs tag needs a tag, as in: plastibench runs tag trial 3e1522a7")
        tag = check_tag(args.run.pop(0))
    filters = {name: getattr(args, name) for name in _FILTERS}
    if args.action in ("tag", "rm", "archive") and not args.run and not any(filters.values()):
        raise UserError(
            f"runs {args.action} needs runs: ids, patterns such as '*rnr*', or filters such as --state failed"
        )
    found = select(find_runs(args.runs_dir), args.run, filters)
    if not found:
        if args.action not in ("list", "status"):
            raise UserError(f"runs {args.action}: no run matches; see plastibench runs list")
        print("no run matches")
        return 0
    if args.action == "list":
        print(_table(found, terminal_width(args.wide)))
    elif args.action == "status":
        print(_status(found, terminal_width(args.wide)))
    elif args.action == "tag":
        _tag(found, tag, args.remove)
        update_board(args.runs_dir)  # tags affect the table over all settings
    else:
        return _take_away(args.action, found, args)
    return 0


def _table(found: Sequence[RunFolder], width: int) -> str:
    """Format a row per run, without the columns that do not fit."""
    from plastibench.sweeps.run_folders import age

    header = ["run", "method", "seed", "state", "age", "env", "tags", "agent"]
    rows = [
        [
            run.short_id,
            run.shown["intervention"],
            "?" if run.seed is None else str(run.seed),
            run.state if run.progress in (None, 1.0) else f"{run.state} {100 * run.progress:.0f} %",
            age(run.changed),
            run.shown["env"],
            " ".join(sorted(run.tags)) or "–",
            run.shown["agent"],
        ]
        for run in found
    ]
    return _aligned_left(header, rows, width)


def _aligned_left(header: list[str], rows: list[list[str]], width: int) -> str:
    """Format a table with one line per run: truncate long cells first, then leave out columns."""
    limits = dict.fromkeys(range(len(header)), 0)
    if width:
        limits |= {header.index(name): max(12, int(width * part)) for name, part in _WIDEST.items() if name in header}
    cut = [[_cut(cell, limits[column]) for column, cell in enumerate(row)] for row in rows]
    count = fitting_columns(header, cut, width)
    sizes = [max(len(line[column]) for line in (header, *cut)) for column in range(count)]
    padded = [[cell.ljust(size) for cell, size in zip(line, sizes, strict=False)] for line in (header, *cut)]
    table = "\n".join(line.rstrip() for line in text_table(padded[0], padded[1:]).splitlines())
    return "\n\n".join([table, *hidden_columns(len(header) - count)])


_WIDEST = {"method": 0.3, "env": 0.3, "agent": 0.2}  # fractions of the width


def _cut(text: str, limit: int) -> str:
    return text if not limit or len(text) <= limit else f"{text[: limit - 1]}…"


def _status(found: Sequence[RunFolder], width: int) -> str:
    """Number of runs in each state, then a line for each run that is not complete."""
    from plastibench.sweeps.run_folders import STATES, age

    count = Counter(run.state for run in found)
    parts = [", ".join(f"{count[state]} {state}" for state in STATES if count[state])]
    unfinished = [run for run in found if run.state != "complete"]
    if unfinished:
        header = ["run", "state", "done", "at", "changed", "method", "seed", "env"]
        rows = [
            [
                run.short_id,
                run.state,
                "–" if run.progress is None else f"{100 * run.progress:.0f} %",
                run.position or "–",
                f"{age(run.changed)} ago",
                run.shown["intervention"],
                "?" if run.seed is None else str(run.seed),
                run.shown["env"],
            ]
            for run in unfinished
        ]
        parts += ["", _aligned_left(header, rows, width)]
    parts += [f"{run.short_id} failed: {run.reason}" for run in found if run.reason]
    if any(run.state in ("interrupted", "waiting") for run in found):
        parts += ["", "continue a run with plastibench resume ID, or with the command that started it"]
    return "\n".join(parts)


def _tag(found: Sequence[RunFolder], tag: str, remove: bool) -> None:
    for run in found:
        write_tags(run.folder, run.tags - {tag} if remove else run.tags | {tag})
    print(f"{'removed' if remove else 'added'} tag {tag}: {_count(found)}")


def _take_away(action: str, found: Sequence[RunFolder], args: argparse.Namespace) -> int:
    """Delete or archive runs, and bring TensorBoard's leaderboard up to date."""
    from plastibench.sweeps.run_archive import archive, check_idle, remove

    check_idle(found, "removed" if action == "rm" else "archived")
    if action == "archive":
        for path in archive(found, args.runs_dir):
            print(path)
    else:
        if not args.yes and not _confirmed(found):
            print("nothing removed")
            return 1
        remove(found)
        print(f"removed {_count(found)}")
    update_board(args.runs_dir)
    return 0


def _confirmed(found: Sequence[RunFolder]) -> bool:
    """Ask in the terminal whether to delete the runs.

    Raises:
        UserError: Standard input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise UserError(f"rm would delete {_count(found)}; add --yes to confirm")
    for run in found:
        print(run.folder)
    return input(f"delete {_count(found)}? [y/N] ").strip().lower() in ("y", "yes")


def _restore(wanted: list[str], runs_dir: Path) -> int:
    from plastibench.sweeps.run_archive import archived, restore
    from plastibench.sweeps.run_folders import matches

    paths = {path.name.removesuffix(".tar.gz"): path for path in archived(runs_dir)}
    if not wanted:
        print("\n".join(paths) or f"no archived runs in {runs_dir}")
        return 0
    chosen: dict[str, Path] = {}
    for pattern in wanted:
        names = [name for name in paths if matches(pattern, name)]
        if not names:
            raise UserError(f"no archived run '{pattern}'{did_you_mean(pattern, list(paths))}")
        chosen |= {name: paths[name] for name in names}
    for path in chosen.values():
        print(restore(path, runs_dir))
    update_board(runs_dir)
    return 0


def _count(found: Sequence[RunFolder]) -> str:
    return plural(len(found), "run")
