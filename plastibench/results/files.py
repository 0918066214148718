"""Read and write ``result.json``, the source of truth of a finished run for the leaderboard and plots."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench.config import identity
from plastibench.config.errors import RunError, UserError
from plastibench.config.options import as_dict
from plastibench.config.spec import PARTS, RunSpec
from plastibench.results.object_storage import fetch_results, is_url
from plastibench.results.result import SCHEMA, Result
from plastibench.results.table import Results
from plastibench.utils import digests
from plastibench.utils.atomic_io import write_text

REFERENCE_FILE = "REFERENCE"  # marks a folder of reference results
_SHIPPED = Path(__file__).resolve().parents[2] / "runs" / "reference"  # exists in a source tree
_SCHEDULE = ("roles", "until", "offline_updates")
_LARGEST = 64 << 20  # bytes of a file; most results have about ten thousand
_LONGEST_INTEGER = 100  # digits; longer ones cannot become a float
_NAMED = 3  # maximum number of runs listed in a message
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
    """Create the result of a run.

    Args:
        spec: What was run.
        trainer: The values from the trainer: ``summary``, and either ``tasks`` or ``returns`` and ``events``.
        interventions: A record for each intervention on a network.
        plasticity: A record for each measurement of plasticity metrics.
        cost: Time, updates, data and memory. Only the times differ between two runs of the same spec.
        origin: Command, commit, versions, hardware, precision.
        env_version: Version of the environment or task stream.
        data_digest: Digest of the dataset; None if there is none.
        agent_version: Version of the agent.

    Raises:
        RunError: A value is not valid in a result, such as a NaN in the summary.

    Measured values that are not finite become None and are listed in ``not_finite``.
    """
    not_finite: dict[str, str] = {}
    trainer, interventions, plasticity = (
        _without_infinities(values, where, not_finite)
        for where, values in (("", trainer), ("interventions", interventions), ("plasticity", plasticity))
    )
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
        **({"not_finite": not_finite} if not_finite else {}),
    }
    try:
        return Result.from_dict(content)
    except UserError as error:
        said = ", ".join(f"{where} is {value}" for where, value in list(not_finite.items())[:1])
        reason = f"{said}, as the run has diverged; try a smaller --agent.lr" if said else error
        raise RunError(f"{spec.id} has no valid result: {reason}") from error


def schedule(run: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, other than ``every``, that define when and on which networks interventions act."""
    return {name: value for name, value in run.items() if name in _SCHEDULE}


def _values(result: Result) -> dict[str, Any]:
    """The summary of a run, which is used to compare two of its files.

    0.1.0 measured ``none`` at the interventions of a schedule as well, which changes no other value.
    """
    return result.summary.model_dump(exclude=_AT_INTERVENTIONS if result.intervention == identity.BASE else None)


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json`` atomically, with its digest."""
    content = result.to_dict()
    content[digests.KEY] = digests.json_digest(content)
    write_text(folder / "result.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    result._folder = folder


def read_result(path: Path) -> Result:
    """Read a result of this or an older schema.

    Raises:
        UserError: The file cannot be read, is damaged, or is not a valid result.
    """
    try:
        result = Result.from_dict(read_json(path)[1])
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    result._folder = path.parent
    return result


def read_json(path: Path, *, strict: bool = False) -> tuple[str, Any]:
    """Read the text and the content of a ``result.json`` of limited size.

    Args:
        path: The file.
        strict: Refuse NaN and Infinity, which older versions wrote.

    Raises:
        UserError: The file cannot be read, is too large, or does not match its digest.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise UserError(f"{path} cannot be read: it is larger than {_LARGEST >> 20} MiB, too large for a result")
        text = data.decode()
        content = json.loads(text, parse_int=_integer, parse_constant=_no_constant if strict else None)
        intact = not isinstance(content, dict) or digests.is_intact(content)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not intact:
        raise UserError(
            f"{path} does not match its sha256: it is damaged or was edited; restore it, or delete its line "
            "'sha256' to accept the edit"
        )
    return text, content


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _without_infinities(value: Any, where: str, found: dict[str, str]) -> Any:
    """Replace NaN and infinite values outside the summary with None, and record where they were."""
    if isinstance(value, float) and not math.isfinite(value):
        found[where] = str(value)
        return None
    if isinstance(value, Mapping):
        return {
            key: each if key == "summary" else _without_infinities(each, f"{where}.{key}".removeprefix("."), found)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_infinities(each, f"{where}[{number}]", found) for number, each in enumerate(value)]
    return value


def read_result_if_complete(folder: Path) -> Result | None:
    """Read the result of the run in a folder; None if there is no valid one."""
    path = folder / "result.json"
    try:
        return read_result(path) if path.exists() else None
    except UserError:
        return None


def run_folders(runs_dir: Path, file: str) -> list[Path]:
    """Find the folders below a folder of runs that contain a file, sorted by name.

    Hidden folders are skipped. So are folders of reference results, unless ``runs_dir`` is or lies in such a folder.
    """

    def walk() -> Iterator[Path]:
        for root, folders, files in os.walk(runs_dir):
            if REFERENCE_FILE in files and Path(root) != runs_dir:
                folders.clear()
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            if file in files:
                yield Path(root)

    return sorted(walk())


def find_results(runs_dir: Path) -> list[Path]:
    """Find all results below a folder, sorted by name, without reference results (see :func:`run_folders`)."""
    return [folder / "result.json" for folder in run_folders(runs_dir, "result.json")]


def find_reference_results(runs_dir: Path) -> list[Path]:
    """Find the reference results below a folder or, if there are none, those of the source tree.

    Raises:
        UserError: There are none.
    """
    marked = [Path(root) for root, _, files in os.walk(runs_dir) if REFERENCE_FILE in files]
    folders = marked or ([_SHIPPED] if _SHIPPED.is_dir() else [])
    found = dict.fromkeys(path for folder in folders for path in find_results(folder))
    if not found:
        raise UserError(
            f"no reference results: {runs_dir} has no folder with the file {REFERENCE_FILE}, and this installation "
            "contains none; copy runs/reference of the source tree into it"
        )
    return list(found)


def load_results(
    runs_dir: str | Path = "runs", *, lean: bool = False, with_reference: bool = False, hint: str = ""
) -> Results:
    """Load all results below a folder.

    Damaged files are skipped, and results that contradict the first result found for the same run. A line on stderr
    names each skipped file. If a run has several identical results, only one is loaded.

    Args:
        runs_dir: Folder of runs, or a URL such as ``s3://bucket/runs``, which fsspec reads.
        hint: End of the message about a missing folder.
        lean: Leave out everything but summary, options, cost and origin, so that thousands of results fit into memory.
        with_reference: Include reference results: those below ``runs_dir`` in a folder with a file ``REFERENCE``, or
            else those of the source tree. Reference results take precedence: other results with the same method, seed
            and data are left out, and a line on stderr says so.

    Raises:
        UserError: The folder does not exist or contains no valid result.
    """
    where = str(runs_dir)
    runs_dir = fetch_results(where) if is_url(runs_dir) else Path(runs_dir)
    if not runs_dir.is_dir():
        raise UserError(f"the folder {runs_dir} does not exist; run an experiment first{hint}")
    reference = _read_all(find_reference_results(runs_dir), lean) if with_reference else []
    data: dict[tuple[str, int, int], set[str | None]] = {}  # data digests by method, seed and version of the env
    for result in reference:
        data.setdefault((result.group, result.seed, result.env_version), set()).add(result.data_digest)
    found = list(reference)
    left_out = []
    for result in _read_all(find_results(runs_dir), lean, known=reference):
        digests = data.get((result.group, result.seed, result.env_version), set())
        if digests and (None in {*digests, result.data_digest} or result.data_digest in digests):
            left_out.append(str(result.folder))
        else:
            found.append(result)
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        shown = f"{', '.join(left_out[:_NAMED])}{more}"
        print(
            f"plastibench: left out: {shown}; the reference results contain the same method and seed", file=sys.stderr
        )
    if not found:
        raise UserError(f"no finished run in {where}; run an experiment first{hint}")
    return Results(found)


def _read_all(paths: Sequence[Path], lean: bool, known: Sequence[Result] = ()) -> list[Result]:
    """Read each result once. Report skipped files on stderr, except copies of results in ``known``."""
    summaries = {result.id: result.summary for result in known}
    found: dict[str, Result] = {}
    for path in paths:
        try:
            result = read_result(path)
            if summaries.get(result.id) == result.summary:
                continue
            first = found.get(result.id)
            if first is not None and _values(first) != _values(result):
                raise UserError(f"{path} contradicts the result of the same run in {first.folder}")
        except UserError as error:
            print(f"plastibench: skipped: {error}", file=sys.stderr)
            continue
        if first is None or (result.run and not first.run):  # files of schema 1 do not have the options of the run
            found[result.id] = result.model_copy(update={key: [] for key in _LONG}) if lean else result
    return list(found.values())
