"""Every intervention on one scenario: a table of what it brings and what it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench import leaderboard
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark import Cost, cost
from plastibench.utils import atomic_io
from plastibench.utils.tables import markdown_table, mean_std

COSTS_FILE = "costs.json"
_OF_ACCURACY = (
    "final, average: accuracy after the last task, and at the end of each; drop: points lost right at the "
    "intervention, mean over switches; recovery: epochs until the accuracy before the switch is back (in brackets: "
    "share of switches where it is not);"
)
_OF_RETURNS = (
    "final, average: mean of the last three returns, and of all; drop: return lost at the intervention, mean "
    "over them; recovery: steps until the return before it is back (in brackets: share of interventions after which "
    "it is not);"
)
_OF_COSTS = (
    "update: time of an update over that of one without the intervention "
    "(quartiles over rounds in which both are timed in turn); acts: as many updates take as long as one time that it "
    "acts at a switch; keeps: memory between updates, in copies of the parameters."
)


def all_interventions() -> list[str]:
    """Names that stand for themselves: all but wrappers that need to be told what they wrap, and families."""
    return [name for name in registry.interventions.all() if not name.endswith("*")]


def measure_costs(specs: Sequence[RunSpec], data_dir: Path, path: Path, quiet: bool = False) -> dict[str, Cost]:
    """Costs of each intervention by name; those in ``path`` are read, and new ones are added to it at once.

    The file has them by what the runs are called without their seed: another agent or option is another cost.

    One that does not work on this agent is left out; its runs say why.
    """
    known = _kept(path)
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
        atomic_io.write_text(path, json.dumps(known, indent=1) + "\n")
    entries = {spec.intervention[0]: known[spec.group()] for spec in specs if spec.group() in known}
    return {name: Cost(tuple(each["update"]), each["updates_each"], each["memory"]) for name, each in entries.items()}


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for each in known.values():
            low, middle, high = map(float, each["update"])
            Cost((low, middle, high), float(each["updates_each"]), float(each["memory"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it, and costs are timed anew"
        ) from error
    return known


def legend(found: Sequence[dict[str, Any]]) -> str:
    """What the columns of :func:`table` are."""
    if leaderboard.acts(found[0]):
        return f"{_OF_RETURNS} costs are timed on supervised streams alone."
    return f"{_OF_ACCURACY} {_OF_COSTS}"


def table(found: Sequence[dict[str, Any]], costs: Mapping[str, Cost], failures: Sequence[str]) -> str:
    """Markdown: one row per intervention, best final accuracy or return first, then what does not work here and why.

    Args:
        found: Results of runs in one scenario with one agent.
        costs: By name of the intervention.
        failures: Sentences on what failed.
    """
    acts = leaderboard.acts(found[0])
    kind, unit = ("return", "") if acts else ("accuracy", " %")
    shown: dict[str, Any] = {"scale": 1.0, "digits": 2} if acts else {}
    header = ["intervention (seeds)", f"final{unit}", f"average{unit}", "drop", "recovery"]
    rows = []
    for runs in sorted(leaderboard.by_group(found), key=leaderboard.final, reverse=True):
        summaries = [run["summary"] for run in runs]
        names = (f"final-{kind}", f"average-{kind}", "mean-drop")
        cells = [mean_std([summary.get(name) for summary in summaries], **shown) for name in names]
        rows.append([f"`{leaderboard.label(runs[0])}` ({len(runs)})", *cells, leaderboard.recovery(runs)])
        rows[-1] += [] if acts else _cost_cells(costs.get(runs[0]["intervention"]))
    drawn = markdown_table(header if acts else [*header, "update", "acts", "keeps"], rows)
    return "\n".join([drawn, "", *(f"- {each}" for each in failures)]) if failures else drawn


def _cost_cells(found: Cost | None) -> list[str]:
    if found is None:
        return ["–", "–", "–"]
    low, middle, high = found.update
    return [f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{found.updates_each:.1f}", f"{found.memory:.2g}"]
