"""Results from elsewhere: whether a ``result.json`` is what it should be, and can be true, before it is compared."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.spec import PARTS, RunSpec, identity
from plastibench.results import accuracy, returns
from plastibench.results.files import SCHEMA, read_result, schedule, write_result
from plastibench.results.shape import mistake

_LARGEST = 64 << 20  # bytes; a result has some ten thousand
_SHOWN = 5  # problems told at a time
_TOLERANCE = 1e-4  # published results may be rounded
_NOISE = 0.01  # of accuracy, where a GPU's kernels do not repeat exactly

Result = dict[str, Any]


def add(path: Path, runs_dir: Path) -> tuple[Path, list[str]]:
    """Check a result and put it among others.

    Returns:
        Where it lies now, and what could not be checked.

    Raises:
        UserError: It cannot be read, is not plausible, or another result of the same run is there.
    """
    result = _read(path)
    problems = _shape(result) or list(filter(None, [mistake(result)])) or list(_contradictions(result))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(f"{path} is not added: {'; '.join(problems[:_SHOWN])}{more}")
    folder = runs_dir / result["id"]
    there = folder / "result.json"
    if there.exists():
        other = read_result(there)
        if other == result:
            raise UserError(f"{path} is there already, as {there}")
        finals = " and ".join(_final(each) for each in (other, result))
        raise UserError(f"{path} is not added: {there} is another result of the same run ({finals}); move it first")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{path} is not added: the same run is under way in {folder}; finish or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder, result)
    return there, list(_unchecked(result))


def _read(path: Path) -> Result:
    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no figure")

    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is not added: it is larger than {_LARGEST >> 20} MiB, and so no result")
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(result, dict) or "schema" not in result:
        raise UserError(f"{path} is not added: it is no result.json of plastibench")
    schema = result["schema"]
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        what = "a newer plastibench made it; update yours" if newer else "run it again to have a present one"
        raise UserError(f"{path} is not added: schema {schema} instead of {SCHEMA}; {what}")
    return result


def _shape(result: Result) -> list[str]:
    """Where it breaks the JSON schema."""
    import jsonschema

    schema = json.loads(Path(__file__).with_name("result.schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(result)
    return [f"{error.json_path.removeprefix('$.')}: {' '.join(error.message.split())[:100]}" for error in errors]


def _contradictions(result: Result) -> Iterator[str]:
    """What cannot be true although it has the right form."""
    yield from _identity(result)
    yield from _names(result)
    yield from _cost(result)
    acts = "returns" in result
    summary = _summary_of_returns(result) if acts else _summary_of_tasks(result)
    for name, value in summary.items():
        stated = result["summary"].get(name)
        if not _agree(stated, value):
            yield f"summary {name} is {stated}, but the {'evaluations' if acts else 'tasks'} make it {value}"
    if not acts:
        yield from _tasks(result)


def _identity(result: Result) -> Iterator[str]:
    if (result["seed"], result["every"]) != (result["run"]["seed"], result["run"]["every"]):
        yield "seed or every differ from those under run"
        return
    parts = [(result[part], result["options"][part]) for part in PARTS]
    for key, seed in (("id", result["seed"]), ("group", 0)):
        expected = identity(parts, {**result["run"], "seed": seed})
        if result[key] != expected:
            yield f"{key} is {result[key]}, but the names and options in it make {expected}"


def _names(result: Result) -> Iterator[str]:
    """Whether all is told that sets it apart from what its names stand for: rows are called after it."""
    try:
        given: dict[str, Any] = {f"{part}_options": result["options"][part] for part in PARTS}
        spec = RunSpec.make(*(result[part] for part in PARTS), **given)
    except UserError:
        spec = None  # not known here with these options
    for part in PARTS:
        stated, options = result["changed"][part], result["options"][part]
        if spec is not None and stated != json.loads(json.dumps(spec.changed(part))):
            yield f"changed.{part} is not what differs from the options of {result[part]}"
        elif not all(name in options and options[name] == value for name, value in stated.items()):
            yield f"changed.{part} is not in options.{part}"
    if result.get("schedule", {}) != schedule(result["run"]):
        yield "schedule is not what run says"


def _cost(result: Result) -> Iterator[str]:
    cost = result["cost"]
    if cost["intervention-seconds"] > cost["seconds"]:
        yield "the intervention took longer than the whole run"
    elif cost["intervention-seconds"] + cost.get("metric-seconds", 0.0) > cost["seconds"]:
        yield "intervention and metrics took longer than the whole run"
    last = max((report["update"] for report in result["interventions"]), default=0)
    if last > cost["updates"]:
        yield f"an intervention at update {last:,} of {cost['updates']:,}"


def _summary_of_tasks(result: Result) -> Mapping[str, Any]:
    made = [accuracy.TaskRecord(**_only(task, accuracy.TaskRecord)) for task in result["tasks"]]
    summary = accuracy.summary(made)
    if result["every"]:  # drops are then those in mid-task, which the tasks do not hold
        summary = {key: value for key, value in summary.items() if key not in _IN_MID_TASK}
    return summary


_IN_MID_TASK = ("mean-drop", "mean-agreement", "mean-output-kl")


def _summary_of_returns(result: Result) -> Mapping[str, Any]:
    curve = [returns.Evaluation(**_only(point, returns.Evaluation)) for point in result["returns"]]
    events = [returns.Event(**_only(event, returns.Event)) for event in result["events"]]
    scenario = _scenario(result)
    summary = returns.summary(curve, events, scenario.reference_returns if scenario is not None else None)
    if scenario is None:
        del summary["normalised-return"]  # by bounds that the result does not hold
    return summary


def _tasks(result: Result) -> Iterator[str]:
    tasks = result["tasks"]
    if [task["task"] for task in tasks] != list(range(len(tasks))):
        yield "tasks are not numbered 0, 1, 2, …"
    for before, task in itertools.pairwise(tasks):
        if task["before"] is not None and not _agree(before["end"], task["before"]):
            yield f"task {task['task']} begins at {task['before']}, but the one before it ended at {before['end']}"
    if result["intervention"] == "none" and not result["every"]:
        changed = [task["task"] for task in tasks if abs(task["drop"] or 0.0) > _NOISE]
        if changed:
            yield f"none changed the accuracy, at the switch to task {changed[0]}"
    wanted = _scenario(result)
    if wanted is not None and len(tasks) != wanted.task_count:
        yield f"{len(tasks)} tasks, but {result['env']} with these options has {wanted.task_count}"


def _scenario(result: Result) -> Any:
    """The options of the env, where it is known here and still takes them."""
    try:
        entry = registry.envs[result["env"]]
        return build(entry.load(), {**entry.defaults, **result["options"]["env"]}, result["env"])
    except UserError:
        return None


def _unchecked(result: Result) -> Iterator[str]:
    """What is not known here."""
    for part in PARTS:
        try:
            entry = getattr(registry, f"{part}s")[result[part]]
            build(entry.load(), {**entry.defaults, **result["options"][part]}, f"{part} {result[part]}")
        except UserError as error:
            yield f"{part} {result[part]} is not known here with its options, which are taken as stated ({error})"
    if not result["origin"]["commit"]:
        yield "it names no commit"


def _only(values: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in cls.__dataclass_fields__}


def _agree(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is None and right is None
    return math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _final(result: Result) -> str:
    name = "final-return" if "returns" in result else "final-accuracy"
    return f"{name} {result['summary'].get(name)}"
