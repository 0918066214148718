"""``result.json``: the source of truth of a finished run, which leaderboard and figures read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench.config.errors import UserError
from plastibench.config.options import as_dict
from plastibench.config.spec import PARTS, RunSpec
from plastibench.results.shape import mistake
from plastibench.utils.atomic_io import write_text

SCHEMA = 2  # 1 said neither data nor version of the scenario, nor all options of the run
_SCHEDULE = ("roles", "until", "offline_updates")


def compose_result(
    spec: RunSpec,
    trainer: Mapping[str, Any],
    interventions: Sequence[dict[str, Any]],
    plasticity: Sequence[dict[str, Any]],
    cost: dict[str, float],
    origin: dict[str, Any],
    scenario: dict[str, Any],
) -> dict[str, Any]:
    """The content of a result.

    Args:
        spec: What was run.
        trainer: What the course of the run found: its ``summary`` and the figures behind it.
        interventions: What each intervention did, in a few numbers.
        plasticity: Plasticity metrics at each moment they were measured.
        cost: Updates and samples, bytes kept, and seconds: the only figures that differ between two runs of a spec.
        origin: Command, commit, versions, hardware, precision.
        scenario: Its version, and the digest of its data where it has any: results are compared where both agree.
    """
    return {
        "schema": SCHEMA,
        "id": spec.id,
        "group": spec.group(),
        "env": spec.env[0],
        "agent": spec.agent[0],
        "intervention": spec.intervention[0],
        "seed": spec.run.seed,
        "options": {"env": spec.env[1], "agent": spec.agent[1], "intervention": spec.intervention[1]},
        "changed": {part: spec.changed(part) for part in PARTS},
        "every": spec.run.every,
        "schedule": schedule(as_dict(spec.run)),
        "run": as_dict(spec.run),
        "scenario": scenario,
        **trainer,
        "interventions": list(interventions),
        "plasticity": list(plasticity),
        "cost": cost,
        "origin": origin,
    }


def schedule(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of a run those that say when and on what is intervened, and stand in a row's name."""
    return {name: value for name, value in run.items() if name in _SCHEDULE}


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write ``result.json`` atomically."""
    write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        UserError: It cannot be read, is no result of a schema known here, or was damaged or made by hand.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(result, dict) or result.get("schema") not in (1, SCHEMA):
        raise UserError(f"{path} is not a result of schema 1 or {SCHEMA}")
    if wrong := mistake(result):
        raise UserError(f"{path}: {wrong}")
    return result


def read_result_if_complete(folder: Path) -> dict[str, Any] | None:
    """The result of the run in a folder, or None where there is none that can be read."""
    path = folder / "result.json"
    try:
        return read_result(path) if path.exists() else None
    except UserError:
        return None


def find_results(runs_dir: Path) -> list[Path]:
    """The results below a folder, in order of their names."""
    return sorted(runs_dir.glob("**/result.json"))
