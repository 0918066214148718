"""Results from elsewhere: whether a ``result.json`` is what it should be, and can be true, before it is compared."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.spec import PARTS, RunSpec, identity
from plastibench.results import accuracy, returns
from plastibench.results.files import read_result, schedule
from plastibench.results.result import Result, Text
from plastibench.utils.atomic_io import write_text

_LARGEST = 64 << 20  # bytes; a result has some ten thousand
_SHOWN = 5  # problems told at a time
_TOLERANCE = 1e-4  # published results may be rounded
_NOISE = 0.01  # of accuracy, where a GPU's kernels do not repeat exactly

Name = Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+*-]*$", max_length=200)]


class _Submitted(Result):
    """A result from elsewhere; its names are safe as names of folders."""

    id: Name
    group: Name
    env: Name
    agent: Name
    intervention: Name
    data_digest: Annotated[Text, Field(pattern=r"^[0-9a-f]{12}$")] | None


def add(path: Path, runs_dir: Path) -> tuple[Path, list[str]]:
    """Check a result and copy it into a folder of runs.

    Returns:
        Where it lies now, and what could not be checked.

    Raises:
        UserError: It cannot be read, is not plausible, or another result of the same run is there.
    """
    text, result = _read(path)
    problems = list(_contradictions(result))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(f"{path} is not added: {'; '.join(problems[:_SHOWN])}{more}")
    folder = runs_dir / result.id
    there = folder / "result.json"
    if there.exists():
        other = read_result(there)
        if other.to_dict() == result.to_dict():
            raise UserError(f"{path} is there already, as {there}")
        finals = " and ".join(_final(each) for each in (other, result))
        raise UserError(f"{path} is not added: {there} is another result of the same run ({finals}); move it first")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{path} is not added: the same run is under way in {folder}; finish or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(there, text)
    return there, list(_unchecked(result))


def _read(path: Path) -> tuple[str, Result]:
    """The file's text and content."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is not a number")

    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is not added: larger than {_LARGEST >> 20} MiB, too large for a result")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(content, dict) and content.get("schema") == 1:
        raise UserError(f"{path} is not added: schema 1 lacks what a comparison needs; rerun it with this plastibench")
    try:
        return text, _Submitted.from_dict(content)
    except UserError as error:
        raise UserError(f"{path} is not added: {error}") from error


def _contradictions(result: Result) -> Iterator[str]:
    """What cannot be true although it has the right form."""
    if missing := {"seed", "every", "device"} - set(result.run):
        yield f"run.{min(missing)} is missing"
        return
    yield from _identity(result)
    yield from _names(result)
    yield from _cost(result)
    summary = _summary_of_returns(result) if result.is_rl else _summary_of_tasks(result)
    for name, value in summary.items():
        stated = getattr(result.summary, name)
        if not _agree(stated, value):
            yield f"summary.{name} is {stated}, but the {'evaluations' if result.is_rl else 'tasks'} make it {value}"
    if not result.is_rl:
        yield from _tasks(result)


def _identity(result: Result) -> Iterator[str]:
    if (result.seed, result.every) != (result.run["seed"], result.run["every"]):
        yield "seed or every differ from those under run"
        return
    parts = [(getattr(result, part), getattr(result.options, part)) for part in PARTS]
    for key, stated, seed in (("id", result.id, result.seed), ("group", result.group, 0)):
        expected = identity(parts, {**result.run, "seed": seed})
        if stated != expected:
            yield f"{key} is {stated}, but the names and options in it make {expected}"


def _names(result: Result) -> Iterator[str]:
    """Whether all is told that sets it apart from what its names stand for: rows are called after it."""
    try:
        given: dict[str, Any] = {f"{part}_options": getattr(result.options, part) for part in PARTS}
        spec = RunSpec.make(*(getattr(result, part) for part in PARTS), **given)
    except UserError:
        spec = None  # not known here with these options
    for part in PARTS:
        stated, options = getattr(result.changed, part), getattr(result.options, part)
        if spec is not None and stated != json.loads(json.dumps(spec.changed(part))):
            yield f"changed.{part} is not what differs from the options of {getattr(result, part)}"
        elif not all(name in options and options[name] == value for name, value in stated.items()):
            yield f"changed.{part} is not in options.{part}"
    if result.schedule != schedule(result.run):
        yield "schedule is not what run says"


def _cost(result: Result) -> Iterator[str]:
    cost = result.cost
    if not cost.seconds or not cost.updates:
        yield f"cost.{'updates' if cost.seconds else 'seconds'} is 0"
    if cost.intervention_seconds > cost.seconds:
        yield "the intervention took longer than the whole run"
    elif cost.intervention_seconds + cost.metric_seconds > cost.seconds:
        yield "intervention and metrics took longer than the whole run"
    last = max((record.update for record in result.interventions), default=0)
    if last > cost.updates:
        yield f"an intervention at update {last:,} of {cost.updates:,}"


def _summary_of_tasks(result: Result) -> Mapping[str, Any]:
    made = [accuracy.TaskRecord(**_only(task, accuracy.TaskRecord)) for task in result.tasks]
    summary = accuracy.summary(made)
    if result.every:  # drops are then those in mid-task, which the tasks do not hold
        summary = {key: value for key, value in summary.items() if key not in _IN_MID_TASK}
    return summary


_IN_MID_TASK = ("mean_drop", "mean_agreement", "mean_output_kl")


def _summary_of_returns(result: Result) -> Mapping[str, Any]:
    curve = [returns.Evaluation(**_only(point, returns.Evaluation)) for point in result.returns]
    events = [returns.Event(**_only(event, returns.Event)) for event in result.events]
    scenario = _scenario(result)
    summary = returns.summary(curve, events, scenario.reference_returns if scenario is not None else None)
    if scenario is None:
        del summary["normalised_return"]  # by bounds that the result does not hold
    return summary


def _tasks(result: Result) -> Iterator[str]:
    tasks = result.tasks
    if [task.task for task in tasks] != list(range(len(tasks))):
        yield "tasks are not numbered 0, 1, 2, …"
    for before, task in itertools.pairwise(tasks):
        if task.before is not None and not _agree(before.end, task.before):
            yield f"task {task.task} begins at {task.before}, but the one before it ended at {before.end}"
    if result.intervention == "none" and not result.every:
        changed = [task.task for task in tasks if abs(task.drop or 0.0) > _NOISE]
        if changed:
            yield f"none changed the accuracy, at the switch to task {changed[0]}"
    wanted = _scenario(result)
    if wanted is not None and len(tasks) != wanted.task_count:
        yield f"{len(tasks)} tasks, but {result.env} with these options has {wanted.task_count}"


def _scenario(result: Result) -> Any:
    """The options of the env, where it is known here and still takes them."""
    try:
        entry = registry.envs[result.env]
        return build(entry.load(), {**entry.defaults, **result.options.env}, result.env)
    except UserError:
        return None


def _unchecked(result: Result) -> Iterator[str]:
    """What is not known here."""
    for part in PARTS:
        name, options = getattr(result, part), getattr(result.options, part)
        try:
            entry = getattr(registry, f"{part}s")[name]
            build(entry.load(), {**entry.defaults, **options}, f"{part} {name}")
        except UserError as error:
            yield f"{part} {name} is not known here with its options, which are taken as stated ({error})"
    if not result.origin.commit:
        yield "it names no commit"


def _only(part: BaseModel, cls: Any) -> dict[str, Any]:
    return {key: value for key, value in part if key in cls.__dataclass_fields__}


def _agree(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is None and right is None
    return math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _final(result: Result) -> str:
    return f"final_{'return' if result.is_rl else 'accuracy'} {result.final}"
