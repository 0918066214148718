"""The command ``plastibench plot``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from plastibench.cli import plots_folder
from plastibench.cli.arguments import OTHER_RUNS_DIR, add_paths, add_reference, split_names
from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError, did_you_mean
from plastibench.plotting import PLOTS

if TYPE_CHECKING:
    from plastibench.results.result import Result

_EXAMPLES = """\
examples:
  plastibench plot curves --env cl-digits --intervention none,reset,rnr
  plastibench plot curves --metric gradient-norm
  plastibench plot pareto --out trade-off.pdf
  plastibench plot heatmap --metric dormant-ratio"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    width = max(map(len, PLOTS))
    kinds = "\n".join(f"  {kind:{width}}  {summary}" for kind, (_, summary) in PLOTS.items())
    parser.intermixed = True
    parser.usage = "plastibench plot KIND [OUT] [options]"
    parser.epilog = f"kinds:\n{kinds}\n\n{_EXAMPLES}"
    parser.add_argument("kind", metavar="KIND", nargs="?", help="kind of plot (see below)")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        nargs="*",
        help="output file or folder; the suffix (.png, .svg, .pdf) sets the format; without suffix: PNG and SVG "
        "(default: RUNS_DIR/plots/KIND)",
    )
    parser.add_argument("--out", dest="out_option", metavar="OUT", type=Path, help="same as OUT, as a flag")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric for curves and heatmap: any name in metrics.csv (definitions: plastibench list metrics)",
    )
    runs = parser.add_argument_group("runs", "Names as in the leaderboard, including options: 'rnr tau=0.5'.")
    runs.add_argument("--env", metavar="NAMES", help="only these envs")
    runs.add_argument("--agent", metavar="NAMES", help="only these agents")
    runs.add_argument("--intervention", metavar="NAMES", help="only these interventions, in this order")
    add_reference(runs)
    add_paths(parser)
    parser.set_defaults(data_dir=None)  # only fig3 takes --data-dir


def execute(args: argparse.Namespace) -> int:
    """Draw the plot and print the files written."""
    from plastibench import plotting
    from plastibench.results.files import load_results

    out = _output(args)
    if out is not None:
        out = out / args.kind if out.is_dir() else out
        plotting.check_path(out)
    found: list[Result] = load_results(args.runs_dir, hint=OTHER_RUNS_DIR, with_reference=args.with_reference)
    for part in ("env", "agent", "intervention"):
        found = _select(found, part, getattr(args, part), args.runs_dir)
    figure = plotting.draw(args.kind, found, metric=args.metric, data_dir=args.data_dir)
    for path in plotting.save(figure, out or plots_folder.default_output(args.runs_dir, args.kind, args.metric)):
        print(path)
    if out is None:
        plots_folder.show_in_tensorboard(args.runs_dir)
    return 0


def _output(args: argparse.Namespace) -> Path | None:
    """The output file, if one is named.

    Raises:
        UserError: There is no kind, or more than one output file.
    """
    from plastibench import plotting

    if args.kind is None:
        raise UserError(f"plot needs a kind, as in: plastibench plot curves (kinds: {', '.join(PLOTS)})")
    files = [*map(str, args.out), *([f"--out {args.out_option}"] if args.out_option is not None else [])]
    if args.kind not in PLOTS and files and files[0] in PLOTS:
        raise UserError(f"'{args.kind}' is not a kind of plot; the kind comes first: plastibench plot KIND [OUT]")
    plotting.check_kind(args.kind)
    if len(files) > 1:
        raise UserError(f"{len(files)} output files: {', '.join(files)}; name one, as in: plastibench plot KIND OUT")
    out: Path | None = args.out[0] if args.out else args.out_option
    return out


def _select(found: list[Result], part: str, wanted: str | None, runs_dir: Path) -> list[Result]:
    """Keep the results with the wanted envs, agents or interventions, in the given order."""
    from plastibench.leaderboard import label, means, method_names

    if wanted is None:
        return found
    shown = list(method_names(found).values()) if part == "intervention" else [label(run, part) for run in found]
    available = ", ".join(sorted(set(shown)))
    whole = any(means(wanted, result, part) for result in found)  # a name with a list option contains commas
    names = [wanted] if whole else split_names(wanted)
    if not names:
        raise UserError(f"--{part} is empty; choose from {available}")
    chosen: dict[int, Result] = {}
    for name in names:
        meant = [result for result in found if means(name, result, part)]
        if not meant:
            hint = did_you_mean(name, shown)
            raise UserError(f"no finished run of {part} '{name}' in {runs_dir}{hint} (choose from {available})")
        chosen.update((id(result), result) for result in meant)
    return list(chosen.values())
