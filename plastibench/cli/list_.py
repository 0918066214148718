"""The command ``plastibench list``."""

from __future__ import annotations

import argparse

from plastibench.cli.arguments import add_plugin, add_wide
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.config import registry
from plastibench.utils.tables import columns_with_summary, terminal_width

_SUMMARY = 0.5  # minimum fraction of the width for the summary
REGISTRIES = {"envs": registry.envs, "agents": registry.agents, "interventions": registry.interventions}


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench list [envs|agents|interventions|metrics] [options]"
    parser.add_argument("kind", nargs="?", choices=[*REGISTRIES, "metrics"], help="what to list (default: everything)")
    group = parser.add_argument_group("execution")
    add_wide(group)
    add_plugin(group)


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
    width = terminal_width(args.wide)
    for kind, rows in tables.items():
        if args.kind in (None, kind):
            print(f"{kind}:\n{columns_with_summary(_fitting(rows, width), width)}\n")
    return 0


def _fitting(rows: list[list[str]], width: int) -> list[list[str]]:
    """Drop columns, from the third on, until the summary has enough room."""
    while len(rows[0]) > 3 and width and width - sum(_widths(rows)) < width * _SUMMARY:
        rows = [[*row[:-2], row[-1]] for row in rows]
    return rows


def _widths(rows: list[list[str]]) -> list[int]:
    return [2 + max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]


def _interventions_in_detail() -> list[list[str]]:
    """Name, kind, cost, hooks and summary of every intervention, below a header."""
    from plastibench.interventions.facts import facts

    rows = [["name", "kind", "cost", "hooks", "what it does (source)"]]
    for name, entry in registry.interventions.all().items():
        known = facts(entry)
        rows.append([name, known.kind, known.cost, " ".join(known.hooks) or "–", entry.summary])
    return rows
