"""Surveys: a table of the performance and the cost of every intervention on one task stream."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench import leaderboard
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.results.confidence import PLUS_MINUS, mean_ci
from plastibench.results.result import Result
from plastibench.sweeps.benchmark.intervention_cost import Cost, cost
from plastibench.utils import atomic_io
from plastibench.utils.tables import fitting_columns, markdown_table, text_table

COSTS_FILE = "costs.json"
_ACCURACY_LEGENDS = {
    "final": "accuracy after the last task",
    "drop": "percentage points lost at an intervention, mean over task boundaries",
    "recovered in": "epochs until accuracy recovers to its value before the boundary, and percentage of boundaries "
    "after which it never does",
    "average": "mean accuracy at the end of each task",
}
_RETURN_LEGENDS = {
    "final": "mean return of the last evaluations, at most three",
    "drop": "return lost at an intervention, mean over interventions",
    "recovered in": "steps until the return recovers to its value before the intervention, and percentage of "
    "interventions after which it never does",
    "average": "mean of all returns",
}
_COST_LEGENDS = {
    "update time": "relative to no intervention (median and quartiles over rounds that time both alternately)",
    "intervention time": "time of one intervention, in updates",
    "memory": "memory kept between updates, as a multiple of the parameters",
}
_COST_COLUMNS = tuple(_COST_LEGENDS)


def all_interventions() -> list[str]:
    """All registered names, except families such as ``x-*``, which need a parameter."""
    return [name for name in registry.interventions.all() if not name.endswith("*")]


def measure_costs(specs: Sequence[RunSpec], data_dir: Path, path: Path, quiet: bool = False) -> dict[str, Cost]:
    """Measure the cost of each intervention, unless it is stored already.

    Args:
        specs: One run of each intervention. Interventions that do not work with the agent are left out.
        data_dir: Folder of datasets.
        path: A JSON file that stores the costs by the id of the run without its seed; new costs are added at once.
        quiet: Show no progress.

    Returns:
        Name of each intervention to its cost.

    Raises:
        UserError: The file is damaged.
    """
    known = _stored(path)
    for spec in specs:
        name = spec.intervention[0]
        before = next((old for old in spec.legacy_groups() if old in known), None)
        if before is not None:
            known.setdefault(spec.group(), known[before])
        if spec.group() in known:
            continue
        if not quiet:
            print(f"measuring the cost of {name}", file=sys.stderr, flush=True)
        try:
            found = cost(spec, data_dir)
        except UserError:
            continue
        known[spec.group()] = {"update": found.update, "updates_each": found.updates_each, "memory": found.memory}
        atomic_io.write_text(path, json.dumps(known, indent=1) + "\n")
    entries = {spec.intervention[0]: known[spec.group()] for spec in specs if spec.group() in known}
    return {name: Cost(tuple(each["update"]), each["updates_each"], each["memory"]) for name, each in entries.items()}


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for each in known.values():
            low, middle, high = map(float, each["update"])
            Cost((low, middle, high), float(each["updates_each"]), float(each["memory"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it to measure the costs again"
        ) from error
    return known


def legend(found: Sequence[Result], shown: int | None = None) -> str:
    """Explain the columns of :func:`table`, or only the first of them, without the name column."""
    meanings = {**(_RETURN_LEGENDS if found[0].is_rl else {**_ACCURACY_LEGENDS, **_COST_LEGENDS})}
    parts = [f"{heading}: {meaning}" for heading, meaning in list(meanings.items())[:shown]]
    closing = ". Costs are measured on supervised task streams only." if found[0].is_rl else "."
    return f"{'; '.join([*parts, PLUS_MINUS])}{closing}"


def table(found: Sequence[Result], costs: Mapping[str, Cost], failures: Sequence[str]) -> str:
    """A Markdown table with a row per intervention, best final accuracy or return first, and a list of failures.

    Args:
        found: Results of runs on one task stream with one agent.
        costs: Name of an intervention to its cost.
        failures: A sentence about each failure.
    """
    header, rows = _cells(found, costs)
    drawn = markdown_table(header, [[f"`{name}` ({count})", *cells] for (name, count), *cells in rows])
    return "\n".join([drawn, "", *(f"- {each}" for each in failures)]) if failures else drawn


def terminal_table(
    found: Sequence[Result], costs: Mapping[str, Cost], failures: Sequence[str], width: int
) -> tuple[str, int]:
    """Like :func:`table`, but without columns that do not fit; also return the number of columns after the name."""
    header, made = _cells(found, costs)
    rows = [[f"{name} ({count})", *cells] for (name, count), *cells in made]
    count = fitting_columns(header, rows, width)
    drawn = text_table(header[:count], [row[:count] for row in rows], width)
    told = [textwrap.fill(f"- {each}", width, subsequent_indent="  ") for each in failures]
    return "\n".join([drawn, *([""] if told else []), *told]), count - 1


def _cells(found: Sequence[Result], costs: Mapping[str, Cost]) -> tuple[list[str], list[Any]]:
    """Header, and rows whose first cell is a pair of label and number of seeds."""
    acts = found[0].is_rl
    kind, unit = ("return", "") if acts else ("accuracy", " %")
    shown: dict[str, Any] = {"scale": 1.0, "digits": 2} if acts else {}
    header = ["intervention (seeds)", f"final{unit}", f"drop{unit}", "recovered in", f"average{unit}"]
    rows: list[Any] = []
    for runs in sorted(leaderboard.by_group(found), key=leaderboard.final, reverse=True):
        names = (f"final_{kind}", "mean_drop", f"average_{kind}")
        final, drop, average = (mean_ci([getattr(run.summary, name) for run in runs], **shown) for name in names)
        name = (leaderboard.label(runs[0]), len(runs))
        rows.append([name, final, drop, leaderboard.recovery(runs), average])
        rows[-1] += [] if acts else _cost_cells(costs.get(runs[0].intervention))
    return (header if acts else [*header, *_COST_COLUMNS]), rows


def _cost_cells(found: Cost | None) -> list[str]:
    if found is None:
        return ["–", "–", "–"]
    low, middle, high = found.update
    return [f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{found.updates_each:.1f}", f"{found.memory:.2g}"]
