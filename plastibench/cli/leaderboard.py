"""The command ``plastibench leaderboard``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from plastibench.cli.arguments import OTHER_RUNS_DIR, add_paths, add_reference, add_wide, check_output_file
from plastibench.cli.board_update import write_board
from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError, did_you_mean
from plastibench.results.tags import TRIAL
from plastibench.utils.tables import terminal_width

if TYPE_CHECKING:
    from plastibench.leaderboard.standings import Standings

_EXAMPLES = """\
examples:
  plastibench leaderboard
  plastibench leaderboard --filter 'env=cl-*' --filter 'seeds>=3' --sort drop
  plastibench leaderboard --with-reference --filter 'env=cl-digits'
  plastibench leaderboard --out leaderboard.html
  plastibench leaderboard add result.json"""


_FORMATS = {
    "": "table",
    ".txt": "table",
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".csv": "csv",
    ".json": "json",
}


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench leaderboard [options]\n       plastibench leaderboard add FILE [FILE ...]"
    parser.epilog = _EXAMPLES
    parser.add_argument("action", nargs="*", metavar="add FILE", help="validate a result.json and add it to the runs")
    what = parser.add_argument_group("rows")
    what.add_argument("--sort", default="rank", metavar="COLUMN", help="column to sort by, best first")
    what.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="CONDITION",
        help="keep matching rows only: 'env=cl-*', 'intervention=rnr*,none', 'seeds>=3'; if repeated, all must match",
    )
    add_reference(what)
    together = parser.add_argument_group("table over all settings")
    together.add_argument(
        "--all-settings",
        action="store_true",
        help="include settings with few methods (default: only settings with at least three methods, and at least half "
        "as many as the median setting)",
    )
    together.add_argument(
        "--exclude-tag",
        action="append",
        default=[],
        metavar="TAG",
        help=f"exclude runs with this tag; may be repeated (runs with the tag '{TRIAL}' are always excluded)",
    )
    how = parser.add_argument_group("output")
    how.add_argument(
        "--format",
        choices=["table", "markdown", "csv", "json", "html"],
        help="output format (default: from the suffix of --out: .html, .md, .csv, .json or .txt; otherwise table)",
    )
    how.add_argument("--out", type=Path, metavar="FILE", help="write to this file instead of the terminal")
    how.add_argument(
        "--tensorboard",
        action="store_true",
        help="write the leaderboard, with plots, for TensorBoard (run and sweep do this automatically at the end)",
    )
    add_wide(how)
    add_paths(parser, data=False, url=True)


def execute(args: argparse.Namespace) -> int:
    """Print or write the leaderboard, or add results to it."""
    if isinstance(args.runs_dir, str) and (args.action or args.tensorboard):
        what = "leaderboard add" if args.action else "--tensorboard"
        raise UserError(f"{what} writes to --runs-dir, but {args.runs_dir} is read-only; use a folder")
    if args.action:
        return _add(args.action, args.runs_dir)
    from plastibench.leaderboard import text as text_format
    from plastibench.leaderboard.standings import standings
    from plastibench.results.files import load_results
    from plastibench.utils.atomic_io import write_text

    check_output_file(args.out)
    form = args.format or _format_of(args.out)
    choice = {"all_settings": args.all_settings, "exclude_tags": (TRIAL, *args.exclude_tag)}
    if args.tensorboard:
        if args.filter or args.out or args.sort != "rank" or args.format:
            raise UserError("--tensorboard writes the full leaderboard; drop --filter, --sort, --format and --out")
        found = load_results(args.runs_dir, hint=OTHER_RUNS_DIR, with_reference=args.with_reference)
        print(write_board(args.runs_dir, standings(found, **choice), plots=True))
        return 0
    lean = form != "html"
    found = load_results(args.runs_dir, lean=lean, hint=OTHER_RUNS_DIR, with_reference=args.with_reference)
    shown = standings(found, sorted_by=args.sort, filters=args.filter, **choice)
    if not shown.tables:
        raise UserError(f"no row matches {' and '.join(args.filter)}; list all with plastibench leaderboard")
    width = 0 if args.out else terminal_width(args.wide)
    draw: dict[str, Callable[[], str]] = {
        "table": lambda: text_format.table(shown, width),
        "markdown": lambda: text_format.markdown(shown),
        "csv": lambda: text_format.as_csv(shown),
        "json": lambda: text_format.as_json(shown),
        "html": lambda: _page(shown),
    }
    text = draw[form]()
    if args.out is None:
        print(text)
    else:
        write_text(args.out, f"{text}\n")
        print(args.out)
    return 0


def _format_of(out: Path | None) -> str:
    """The format that the suffix of a file sets; a table for the terminal and for a file without suffix."""
    suffix = out.suffix.lower() if out is not None else ""
    if suffix not in _FORMATS:
        raise UserError(f"--out {out}: unknown suffix '{suffix}'; use {', '.join(filter(None, _FORMATS))}, or --format")
    return _FORMATS[suffix]


def _page(shown: Standings) -> str:
    from plastibench.leaderboard.html import page
    from plastibench.plotting.leaderboard_plots import plot_settings

    try:
        drawn = plot_settings(shown)
    except UserError as error:
        print(f"plastibench: the page has no plots: {error}", file=sys.stderr)
        drawn = {}
    return page(shown, drawn)


def _add(action: list[str], runs_dir: Path) -> int:
    from plastibench.leaderboard.validation import add

    verb, *files = action
    if verb != "add" or not files:
        hint = "" if verb == "add" else did_you_mean(verb, ["add"])
        raise UserError(f"unknown 'leaderboard {' '.join(action)}'{hint} (expected: leaderboard add FILE)")
    for file in files:
        path, unchecked = add(Path(file), runs_dir)
        print(path)
        for note in unchecked:
            print(f"plastibench: {path}: {note}", file=sys.stderr)
    return 0
