"""The command ``plastibench plot``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from plastibench.cli.arguments import OTHER_RUNS_DIR, add_paths, split_names
from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError
from plastibench.plotting import PLOTS

if TYPE_CHECKING:
    from plastibench.results.result import Result

_EXAMPLES = """\
examples:
  plastibench plot curves --env cl-digits --intervention none,reset,rnr
  plastibench plot pareto trade-off.pdf
  plastibench plot heatmap --metric dormant-ratio"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    width = max(map(len, PLOTS))
    kinds = "\n".join(f"  {kind:{width}}  {summary}" for kind, (_, summary) in PLOTS.items())
    parser.usage = "plastibench plot KIND [OUT] [options]"
    parser.epilog = f"kinds:\n{kinds}\n\n{_EXAMPLES}"
    parser.add_argument("kind", metavar="KIND", help="kind of plot (see below)")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        nargs="?",
        help="output file; the suffix (.png, .svg, .pdf) sets the format, no suffix writes PNG and SVG (default: KIND)",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="metric for curves and heatmap (see: plastibench list metrics)"
    )
    runs = parser.add_argument_group("runs", "Names as in the leaderboard, including options: 'rnr tau=0.5'.")
    runs.add_argument("--env", metavar="NAMES", help="only these envs")
    runs.add_argument("--agent", metavar="NAMES", help="only these agents")
    runs.add_argument("--intervention", metavar="NAMES", help="only these interventions, in this order")
    add_paths(parser)
    parser.set_defaults(data_dir=None)  # only fig3 takes --data-dir


def execute(args: argparse.Namespace) -> int:
    """Draw the plot and print the files written."""
    from plastibench import plotting
    from plastibench.results.files import load_results

    plotting.check_kind(args.kind)
    out = args.out if args.out is not None else Path(args.kind)
    if out.is_dir():
        out = out / args.kind
    plotting.check_path(out)
    found: list[Result] = load_results(args.runs_dir, hint=OTHER_RUNS_DIR)
    for part in ("env", "agent", "intervention"):
        found = _select(found, part, getattr(args, part), args.runs_dir)
    for path in plotting.save(plotting.draw(args.kind, found, metric=args.metric, data_dir=args.data_dir), out):
        print(path)
    return 0


def _select(found: list[Result], part: str, wanted: str | None, runs_dir: Path) -> list[Result]:
    """Keep the results with the wanted envs, agents or interventions, in the given order."""
    from plastibench.leaderboard import label

    if wanted is None:
        return found
    available = sorted({label(result, part) for result in found})
    names = [wanted] if wanted in available else split_names(wanted)  # a name with a list option contains commas
    if not names:
        raise UserError(f"--{part} is empty; choose from {', '.join(available)}")
    for name in sorted(set(names) - set(available)):
        raise UserError(f"no finished run of {part} '{name}' in {runs_dir}; choose from {', '.join(available)}")
    return [result for name in names for result in found if label(result, part) == name]
