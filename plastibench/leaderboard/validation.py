"""Validate submitted results: check the format and plausibility of a ``result.json``, then add it to the runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from plastibench.config import identity, registry
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.spec import PARTS, RunSpec
from plastibench.leaderboard.consistency import contradictions
from plastibench.results.files import read_json, read_result, schedule
from plastibench.results.result import Result, Text
from plastibench.results.run_folder import run_folder
from plastibench.utils.atomic_io import write_text

_SHOWN = 5  # number of problems that a message lists
_NOISE = 0.01  # tolerance for accuracies, because GPU kernels are not exactly reproducible

Name = Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+*-]*$", max_length=200)]


class _Submitted(Result):
    """A submitted result; its names are safe folder names."""

    id: Name
    group: Name
    env: Name
    agent: Name
    intervention: Name
    data_digest: Annotated[Text, Field(pattern=r"^[0-9a-f]{12}$")] | None


def add(path: Path, runs_dir: Path) -> tuple[Path, list[str]]:
    """Validate a result and copy it into a folder of runs.

    Args:
        path: The submitted ``result.json``.
        runs_dir: Folder of runs.

    Returns:
        The new file, and notes on what could not be checked.

    Raises:
        UserError: The result cannot be read or is not plausible, or the run exists already.
    """
    text, result = _read(path)
    problems = list(_contradictions(result))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(f"cannot add {path}: {'; '.join(problems[:_SHOWN])}{more}")
    folder = run_folder(result, runs_dir)
    target = folder / "result.json"
    if target.exists():
        other = read_result(target)
        if other.to_dict() == result.to_dict():
            raise UserError(f"{path} has already been added as {target}")
        finals = " and ".join(_final(each) for each in (other, result))
        raise UserError(
            f"cannot add {path}: {target} is a different result of the same run ({finals}); delete one of them"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"cannot add {path}: {folder} contains the same run, which is unfinished; finish or delete it first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target, list(_unchecked(result))


def _read(path: Path) -> tuple[str, Result]:
    """Read the text and the result of a file."""
    text, content = read_json(path, strict=True)
    if isinstance(content, dict) and content.get("schema") == 1:
        raise UserError(f"cannot add {path}: schema 1 lacks values that a comparison needs; rerun it with this version")
    try:
        return text, _Submitted.from_dict(content)
    except UserError as error:
        raise UserError(f"cannot add {path}: {error}") from error


def _contradictions(result: Result) -> Iterator[str]:
    """Contradictions in a result of the right format."""
    if missing := {"seed", "every", "device"} - set(result.run):
        yield f"run.{min(missing)} is missing"
        return
    yield from _identity(result)
    yield from _names(result)
    yield from _cost(result)
    yield from contradictions(result, _config(result, "env"), _config(result, "agent"))
    if result.intervention == "none" and not result.every:
        changed = [task.task for task in result.tasks if abs(task.drop or 0.0) > _NOISE]
        if changed:
            yield f"tasks[{changed[0]}].drop is not 0, although the intervention is none"


def _identity(result: Result) -> Iterator[str]:
    if (result.seed, result.every) != (result.run["seed"], result.run["every"]):
        yield "seed or every differs from the value in run"
        return
    known = [(getattr(result, part), getattr(result.options, part)) for part in PARTS], result.run, result.code
    expected = {"id": identity.run_id(*known), "group": identity.group_id(*known)}
    for key, value in expected.items():
        if getattr(result, key) != value:
            yield f"{key} is {getattr(result, key)}, but its names and options give {value}"
    for part, version in (("env", result.env_version), ("agent", result.agent_version)):
        code = result.code.get(part, "version 1")
        if code.startswith("version ") and code != f"version {version}":
            yield f"{part}_version is {version}, but code.{part} is {code}"


def _names(result: Result) -> Iterator[str]:
    """Check the stated differences from the defaults; they are part of the method's name on the leaderboard."""
    try:
        given: dict[str, Any] = {f"{part}_options": getattr(result.options, part) for part in PARTS}
        spec = RunSpec.make(*(getattr(result, part) for part in PARTS), **given)
    except UserError:
        spec = None  # unknown name or options, for example of a plugin
    for part in PARTS:
        stated, options = getattr(result.changed, part), getattr(result.options, part)
        if spec is not None and stated != json.loads(json.dumps(spec.changed(part))):
            yield f"changed.{part} does not match the options that differ from the defaults of {getattr(result, part)}"
        elif not all(name in options and options[name] == value for name, value in stated.items()):
            yield f"changed.{part} does not match options.{part}"
    if result.schedule != schedule(result.run):
        yield "schedule does not match run"


def _cost(result: Result) -> Iterator[str]:
    cost = result.cost
    if not cost.seconds or not cost.updates:
        yield f"cost.{'updates' if cost.seconds else 'seconds'} is 0"
    if cost.intervention_seconds > cost.seconds:
        yield "cost.intervention_seconds is more than cost.seconds"
    elif cost.intervention_seconds + cost.metric_seconds > cost.seconds:
        yield "cost.intervention_seconds plus cost.metric_seconds is more than cost.seconds"
    last = max((record.update for record in result.interventions), default=0)
    if last > cost.updates:
        yield f"interventions has update {last:,}, but cost.updates is {cost.updates:,}"


def _config(result: Result, part: str) -> Any:
    """The config of the env or agent; None if it or one of its options is unknown."""
    try:
        entry = getattr(registry, f"{part}s")[getattr(result, part)]
        return build(entry.load(), getattr(result.options, part), getattr(result, part), entry.defaults)
    except UserError:
        return None


def _unchecked(result: Result) -> Iterator[str]:
    """Notes on parts that could not be checked."""
    for part in PARTS:
        name, options = getattr(result, part), getattr(result.options, part)
        try:
            entry = getattr(registry, f"{part}s")[name]
            build(entry.load(), options, f"{part} {name}", entry.defaults)
        except UserError as error:
            yield f"{part} {name} is unknown with these options, so they were not checked ({error})"
    if not result.origin.commit:
        yield "origin.commit is missing"


def _final(result: Result) -> str:
    return f"final_{'return' if result.is_rl else 'accuracy'} {result.final}"
