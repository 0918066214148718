"""Every intervention on one scenario: a table of what it brings and what it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench import checkpoint, leaderboard, registry
from plastibench.benchmark import Cost, cost
from plastibench.errors import UserError
from plastibench.spec import RunSpec
from plastibench.tables import markdown_table, mean_std

COSTS = "costs.json"
_HEADER = ("final %", "average %", "drop", "recovery", "update", "acts", "keeps")
LEGEND = (
    "final, average: accuracy after the last task, and at the end of each; drop: points lost right at the "
    "intervention, mean over switches; recovery: epochs until the accuracy before the switch is back (in brackets: "
    "share of switches where it is not); update: time of an update over that of one without the intervention "
    "(quartiles over rounds in which both are timed in turn); acts: as many updates take as long as one time that it "
    "acts at a switch; keeps: memory between updates, in copies of the parameters."
)


def every_intervention() -> list[str]:
    """Names that stand for themselves: all but wrappers that need to be told what they wrap, and families."""
    return [name for name in registry.interventions.all() if not name.endswith("*")]


def measure_costs(specs: Sequence[RunSpec], data_dir: Path, path: Path, quiet: bool = False) -> dict[str, Cost]:
    """Costs of each intervention by name; those in ``path`` are read, and new ones are added to it at once.

    The file has them by what the runs are called without their seed: another agent or option is another cost.

    One that does not work on this agent is left out; its runs say why.
    """
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for spec in specs:
        name = spec.intervention[0]
        if spec.group() in known:
            continue
        if not quiet:
            print(f"cost of {name}", file=sys.stderr, flush=True)
        try:
            found = cost(spec, data_dir)
        except UserError:
            continue
        known[spec.group()] = {"update": found.update, "updates_each": found.updates_each, "memory": found.memory}
        checkpoint.write_text(path, json.dumps(known, indent=1) + "\n")
    entries = {spec.intervention[0]: known[spec.group()] for spec in specs if spec.group() in known}
    return {name: Cost(tuple(each["update"]), each["updates_each"], each["memory"]) for name, each in entries.items()}


def table(found: Sequence[dict[str, Any]], costs: Mapping[str, Cost], failures: Mapping[str, str]) -> str:
    """Markdown: one row per intervention, best final accuracy first, then those that do not work here and why.

    Args:
        found: Results of runs in one scenario with one agent.
        costs: By name of the intervention.
        failures: Name of an intervention to the reason why it does not run here.
    """
    rows = []
    for runs in sorted(leaderboard.by_group(found), key=leaderboard.final_accuracy, reverse=True):
        summaries = [run["summary"] for run in runs]
        seeds = f" ({len(runs)})"
        cells = [mean_std([s[name] for s in summaries]) for name in ("final-accuracy", "average-accuracy", "mean-drop")]
        rows.append([f"`{leaderboard.label(runs[0])}`{seeds}", *cells, leaderboard.recovery(runs)])
        rows[-1] += _cost_cells(costs.get(runs[0]["intervention"]))
    lines = [markdown_table(["intervention (seeds)", *_HEADER], rows)]
    lines += [f"- `{name}` does not run here: {reason}" for name, reason in failures.items()]
    return "\n".join([lines[0], "", *lines[1:]]) if lines[1:] else lines[0]


def _cost_cells(found: Cost | None) -> list[str]:
    if found is None:
        return ["–", "–", "–"]
    low, middle, high = found.update
    return [f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{found.updates_each:.1f}", f"{found.memory:.2g}"]
