"""The command ``plastibench list``."""

from __future__ import annotations

import argparse

from plastibench.cli.arguments import add_plugin
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.config import registry

REGISTRIES = {"envs": registry.envs, "agents": registry.agents, "interventions": registry.interventions}


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.add_argument("kind", nargs="?", choices=[*REGISTRIES, "metrics"], help="what to list (default: everything)")
    add_plugin(parser.add_argument_group("execution"))


def execute(args: argparse.Namespace) -> int:
    """Print names with summaries."""
    import_plugins(args.plugin)
    from plastibench.metrics import METRICS

    tables = {
        kind: [[name, entry.summary] for name, entry in known.all().items()] for kind, known in REGISTRIES.items()
    }
    tables["metrics"] = [list(row) for row in METRICS.items()]
    if args.kind == "interventions":
        tables["interventions"] = _interventions_in_detail()
    for kind, rows in tables.items():
        if args.kind in (None, kind):
            print(f"{kind}:")
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
            for *cells, summary in rows:
                padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
                print("  ".join(["", *padded, summary]))
            print()
    return 0


def _interventions_in_detail() -> list[list[str]]:
    """Name, kind, hooks, cost and summary of every intervention, below a header."""
    from plastibench.interventions.facts import facts

    rows = [["name", "kind", "hooks", "cost", "what it does (source)"]]
    for name, entry in registry.interventions.all().items():
        known = facts(entry)
        rows.append([name, known.kind, " ".join(known.hooks) or "–", known.cost, entry.summary])
    return rows
