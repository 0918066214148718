"""The command ``plastibench figures``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from plastibench.cli.shared import listed
from plastibench.config.errors import UserError
from plastibench.plotting import FIGURES


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, FIGURES))
    parser.epilog = "\n".join(["kinds:", *(f"  {kind:{width}}  {summary}" for kind, (_, summary) in FIGURES.items())])
    parser.add_argument("kind", metavar="KIND", help="what to draw; all kinds stand below")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        nargs="?",
        help="PNG and SVG are written side by side under this name; NAME.pdf for a PDF (default KIND)",
    )
    parser.add_argument("--env", help="only runs on this task stream, options included as the leaderboard shows them")
    parser.add_argument("--agent", help="only runs of this agent")
    parser.add_argument("--intervention", help="only these rows of the leaderboard: 'none,reset,rnr tau=0.5'")
    parser.add_argument("--metric", help="curves, heatmap: the metric to draw (plastibench list metrics)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where results are (default runs)")
    parser.add_argument("--data-dir", type=Path, help="fig3: where data sets are (default data, or $PLASTIBENCH_DATA)")
    parser.set_defaults(do=_figures)


def _figures(known: argparse.Namespace) -> int:
    from plastibench import leaderboard, plotting

    plotting.check_kind(known.kind)
    out = known.out if known.out is not None else Path(known.kind)
    if out.is_dir():
        out = out / known.kind
    plotting.check_path(out)
    found = leaderboard.load(known.runs_dir)
    for part in ("env", "agent", "intervention"):
        found = _chosen(found, part, getattr(known, part), known.runs_dir)
    for path in plotting.save(plotting.draw(known.kind, found, metric=known.metric, data_dir=known.data_dir), out):
        print(path)
    return 0


def _chosen(found: list[dict[str, Any]], part: str, wanted: str | None, runs_dir: Path) -> list[dict[str, Any]]:
    """The results whose env, agent or intervention is wanted, in the order in which it is named; all by default."""
    from plastibench.leaderboard import label

    if wanted is None:
        return found
    there = sorted({label(result, part) for result in found})
    names = [wanted] if wanted in there else listed(wanted)  # an option that is a list has commas of its own
    if not names:
        raise UserError(f"--{part} is empty (there are {', '.join(there)})")
    for name in sorted(set(names) - set(there)):
        raise UserError(f"no finished run of {part} '{name}' in {runs_dir} (there are {', '.join(there)})")
    return [result for name in names for result in found if label(result, part) == name]
