"""Read and write ``result.json``, the source of truth of a finished run for the leaderboard and plots."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench.config import identity
from plastibench.config.errors import RunError, UserError
from plastibench.config.options import as_dict
from plastibench.config.spec import PARTS, RunSpec
from plastibench.results.result import SCHEMA, Result
from plastibench.results.table import Results
from plastibench.utils.atomic_io import write_text

_SCHEDULE = ("roles", "until", "offline_updates")
_AT_INTERVENTIONS = {
    *("mean_drop", "mean_agreement", "mean_output_kl", "mean_lowest", "mean_recovery_epochs", "mean_recovery_steps"),
    *("unrecovered_fraction", "final_train_accuracy"),
}
_LONG: tuple[str, ...] = ("tasks", "returns", "events", "interventions", "plasticity")


def compose_result(
    spec: RunSpec,
    trainer: Mapping[str, Any],
    interventions: Sequence[Mapping[str, Any]],
    plasticity: Sequence[Mapping[str, Any]],
    cost: Mapping[str, float],
    origin: Mapping[str, Any],
    env_version: int,
    data_digest: str | None,
    agent_version: int = 1,
) -> Result:
    """Make the result of a run.

    Args:
        spec: What was run.
        trainer: The trainer's part: ``summary``, and either ``tasks`` or ``returns`` and ``events``.
        interventions: A record for each intervention on a network.
        plasticity: A record for each measurement of plasticity metrics.
        cost: Time, updates, data and memory. The seconds are the only values that differ between two runs of a spec.
        origin: Command, commit, versions, hardware, precision.
        env_version: Version of the environment or task stream.
        data_digest: Digest of the dataset; None if there is none.
        agent_version: Version of the agent.

    Raises:
        RunError: A value does not fit into a result, such as a NaN in the summary.
    """
    content = {
        "schema": SCHEMA,
        "id": spec.id,
        "group": spec.group(),
        "env": spec.env[0],
        "agent": spec.agent[0],
        "intervention": spec.intervention[0],
        "seed": spec.run.seed,
        "options": {part: dict(getattr(spec, part)[1]) for part in PARTS},
        "changed": {part: spec.changed(part) for part in PARTS},
        "every": spec.run.every,
        "schedule": schedule(as_dict(spec.run)),
        "run": as_dict(spec.run),
        "env_version": env_version,
        "agent_version": agent_version,
        "code": dict(spec.code),
        "data_digest": data_digest,
        **trainer,
        "interventions": list(interventions),
        "plasticity": list(plasticity),
        "cost": cost,
        "origin": origin,
    }
    try:
        return Result.from_dict(content)
    except UserError as error:
        raise RunError(f"{spec.id} has no valid result: {error}") from error


def schedule(run: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that say when and on which networks interventions act, besides ``every``."""
    return {name: value for name, value in run.items() if name in _SCHEDULE}


def _values(result: Result) -> dict[str, Any]:
    """The summary of a run, by which two files of it are compared.

    0.1.0 measured ``none`` at the interventions of a schedule as well, which changes no other value.
    """
    return result.summary.model_dump(exclude=_AT_INTERVENTIONS if result.intervention == identity.BASE else None)


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json`` atomically."""
    write_text(folder / "result.json", json.dumps(result.to_dict(), indent=1) + "\n")
    result._folder = folder


def read_result(path: Path) -> Result:
    """Read a result of this or an older schema.

    Raises:
        UserError: The file cannot be read or is not a valid result.
    """
    try:
        result = Result.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    result._folder = path.parent
    return result


def read_result_if_complete(folder: Path) -> Result | None:
    """Read the result of the run in a folder; None if there is no valid one."""
    path = folder / "result.json"
    try:
        return read_result(path) if path.exists() else None
    except UserError:
        return None


def find_results(runs_dir: Path) -> list[Path]:
    """Find all results below a folder, sorted by name."""
    return sorted(runs_dir.glob("**/result.json"))


def load_results(runs_dir: str | Path = "runs", *, lean: bool = False, hint: str = "") -> Results:
    """Load all results below a folder.

    Prints a line to stderr for each file that is skipped: damaged files, and results of a run that contradict the first
    one found. If a run has several identical results, one of them is loaded.

    Args:
        runs_dir: Folder of runs.
        hint: End of the message about a missing folder.
        lean: Leave out everything but summary, options, cost and origin, so that thousands of results fit into memory.

    Raises:
        UserError: The folder does not exist or contains no valid result.
    """
    runs_dir = Path(runs_dir)
    if not runs_dir.is_dir():
        raise UserError(f"no folder {runs_dir}; run something first{hint}")
    found: dict[str, Result] = {}
    for path in find_results(runs_dir):
        try:
            result = read_result(path)
            first = found.get(result.id)
            if first is not None and _values(first) != _values(result):
                raise UserError(f"{path} contradicts the result of the same run in {first.folder}")
        except UserError as error:
            print(f"plastibench: skipped: {error}", file=sys.stderr)
            continue
        if first is None or (result.run and not first.run):  # files of schema 1 do not have the options of the run
            found[result.id] = result.model_copy(update={key: [] for key in _LONG}) if lean else result
    if not found:
        raise UserError(f"no finished run in {runs_dir}; run something first{hint}")
    return Results(found.values())
