"""Recompute the derived values of a result: tasks, events, schedules, counts and ranges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from plastibench.results import accuracy, returns
from plastibench.results.result import Result
from plastibench.utils.wording import plural

_TOLERANCE = 1e-4  # published results may be rounded
_EARLY_EPOCHS = 5  # each of the first epochs of a task is evaluated
_FRACTIONS = ("fau", "attention-entropy", "layer-rank-fraction")  # and all names that end with -ratio
_SUPERVISED = (("task_count", "epochs", "evaluate_every"), ("batch_size",))
_RL = (
    ("task_count", "steps", "envs", "evaluate_every", "frame_skip"),
    ("batch_size", "learning_starts", "replay_ratio", "n_step"),
)


def agree(left: float | None, right: float | None) -> bool:
    """Whether two values are equal up to rounding."""
    if left is None or right is None:
        return left is None and right is None
    return math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def contradictions(result: Result, env: Any, agent: Any) -> Iterator[str]:
    """Compare stated values with recomputed ones.

    Args:
        result: A result in a valid format.
        env: The config of its env; None if it is unknown.
        agent: The config of its agent; None if it is unknown.

    Yields:
        A line for each field that contradicts other fields.
    """
    yield from _summary(result, env)
    yield from _metrics(result)
    seconds = sum(record.seconds for record in result.interventions)
    if not math.isclose(seconds, result.cost.intervention_seconds, rel_tol=1e-3, abs_tol=1e-3):
        yield f"cost.intervention_seconds is {result.cost.intervention_seconds}, but the interventions took {seconds}"
    kind = _RL if result.is_rl else _SUPERVISED  # an env or agent from a plugin may lack our options
    env, agent = (each if _has(each, names) else None for each, names in zip((env, agent), kind, strict=True))
    yield from _rl(result, env, agent) if result.is_rl else _supervised(result, env, agent)


def _has(config: Any, names: Sequence[str]) -> bool:
    return config is not None and all(hasattr(config, name) for name in names)


def _summary(result: Result, env: Any) -> Iterator[str]:
    if result.is_rl:
        curve, events = _curve(result), _events(result)
        summary = returns.summary(curve, events, env.reference_returns if env is not None else None)
        if env is None:
            del summary["normalized_return"]  # needs the reference returns of the env
    else:
        summary = accuracy.summary([_record(task) for task in result.tasks])
        if result.every:  # in this case, drops are measured within tasks
            measured = [record for record in result.interventions if record.before is not None]
            summary["mean_drop"] = accuracy.mean([_difference(record.before, record.after) for record in measured])
            summary["mean_agreement"] = accuracy.mean([record.agreement for record in measured])
            summary["mean_output_kl"] = accuracy.mean([record.output_kl for record in measured])
    for name, value in summary.items():
        stated = getattr(result.summary, name)
        if not agree(stated, value):
            yield f"summary.{name} is {stated}, but the {'evaluations' if result.is_rl else 'tasks'} give {value}"


def _metrics(result: Result) -> Iterator[str]:
    """Find metrics outside the range of their definition."""
    for number, record in enumerate(result.plasticity):
        for name, value in record.metrics.items():
            low, high = -math.inf, math.inf
            if name.endswith("-ratio") or name in _FRACTIONS:
                low, high = 0.0, 1.0
            elif name.endswith("-cosine"):
                low, high = -1.0, 1.0
            elif name.endswith(("-norm", "-rank", "-distance")) or name == "srank":
                low = 0.0
            if value is not None and not low - _TOLERANCE <= value <= high + _TOLERANCE:
                where = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                yield f"plasticity[{number}].metrics.{name} is {value}, but must be {where}"


# Task streams ------------------------------------------------------------------------------------------------------


def _supervised(result: Result, env: Any, agent: Any) -> Iterator[str]:
    tasks = result.tasks
    if [task.task for task in tasks] != list(range(len(tasks))):
        yield "tasks are not numbered 0, 1, 2, …"
        return
    for task in tasks:
        expected = accuracy.task_values(_record(task))
        for name in ("end", "drop", "recovery", "auc"):
            if not agree(getattr(task, name), expected[name]):
                yield f"tasks[{task.task}].{name} is {getattr(task, name)}, but its evaluations give {expected[name]}"
    reset_late = {record.task for record in result.interventions if result.every}
    for previous, task in itertools.pairwise(tasks):
        # An intervention at the last update of a task acts after the end of the task was measured.
        if task.before is not None and not agree(previous.end, task.before) and previous.task not in reset_late:
            yield f"tasks[{task.task}].before is {task.before}, but the previous task ends at {previous.end}"
    if env is None:
        return
    if len(tasks) != env.task_count:
        yield f"tasks has {plural(len(tasks), 'task')}, but {result.env} with these options has {env.task_count}"
        return
    epochs = [0, *(n for n in range(1, env.epochs + 1) if _is_evaluated(n, env))]
    for task in tasks:
        if [epoch for epoch, _ in task.curve] != epochs:
            yield f"tasks[{task.task}].curve has other epochs than {result.env} evaluates with these options"
    measured = [(task.task, phase) for task in tasks for phase in ("after", "end")]
    yield from _measured(result, [(record.task, record.phase) for record in result.plasticity], measured)
    samples = env.epochs * sum(task.samples for task in tasks)
    if result.cost.samples != samples:
        yield f"cost.samples is {result.cost.samples}, but the tasks give {samples}"
    if agent is None:
        return
    batches = [env.epochs * math.ceil(task.samples / agent.batch_size) for task in tasks]
    ends = list(itertools.accumulate(batches))
    if result.cost.updates != ends[-1]:
        yield f"cost.updates is {result.cost.updates}, but the tasks give {ends[-1]}"
        return
    updates = list(range(result.every, ends[-1], result.every)) if result.every else ends[:-1]
    of_task = [next(t for t, end in enumerate(ends) if u <= end) + (not result.every) for u in updates]
    yield from _interventions(result, list(zip(of_task, updates, strict=True)))


def _is_evaluated(epoch: int, env: Any) -> bool:
    return bool(epoch <= _EARLY_EPOCHS or epoch % env.evaluate_every == 0 or epoch == env.epochs)


# Reinforcement learning --------------------------------------------------------------------------------------------


def _rl(result: Result, env: Any, agent: Any) -> Iterator[str]:
    curve, events = _curve(result), _events(result)
    for number, (event, following) in enumerate(itertools.zip_longest(events, events[1:])):
        expected = returns.event_values(event, curve, following)
        for name, value in expected.items():
            stated = getattr(result.events[number], name)
            if not agree(stated, value):
                yield f"events[{number}].{name} is {stated}, but the evaluations give {value}"
    if env is None:
        return
    per_task = -(-env.steps // env.envs) * env.envs
    expected_points = [
        (task, steps)
        for task in range(env.task_count)
        for steps in range(task * per_task, (task + 1) * per_task + 1, env.envs)
        if steps % per_task == 0 or steps // env.evaluate_every > (steps - env.envs) // env.evaluate_every
    ]
    if [(point.task, point.steps) for point in curve] != expected_points:
        yield f"returns has other steps than {result.env} evaluates with these options"
        return
    total = per_task * env.task_count
    for name, value in (("agent_steps", total), ("environment_steps", total * env.frame_skip)):
        stated = getattr(result.cost, name)
        if stated is not None and stated != value:
            yield f"cost.{name} is {stated}, but {result.env} with these options has {value}"
    if result.cost.updates and not any(record.position == total for record in result.plasticity):
        yield f"plasticity has no measurement at the end, step {total}"
    if agent is None:
        return
    moments = sorted({(record.task, record.update) for record in result.interventions})
    offline = result.run.get("offline_updates") or 0
    updates = agent.replay_ratio * max(0, total - max(agent.learning_starts, agent.batch_size))
    updates += len(moments) * offline
    slack = 1 + agent.replay_ratio * (agent.n_step + 1) * env.envs * env.task_count  # not due yet when a task ended
    if not updates - slack <= result.cost.updates <= updates + 1:
        yield f"cost.updates is {result.cost.updates}, but {result.env} and {result.agent} give about {updates:.0f}"
        return
    if result.every:
        if not offline:
            last = result.cost.updates  # not followed by an intervention, if it is made in the last step
            due = range(result.every, last + (_of_update(moments, last) is not None), result.every)
            # Steps and updates are related too loosely to compute the task of an update.
            yield from _interventions(result, [(_of_update(moments, update) or 0, update) for update in due])
    elif per_task > max(agent.learning_starts, env.envs * (agent.n_step + 1)):
        yield from _interventions(result, [(task, _at_boundary(moments, task)) for task in range(1, env.task_count)])
    measured = not result.every or result.every >= agent.replay_ratio * env.evaluate_every
    if [(event.task, event.update - offline) for event in events] != (moments if measured else []):
        yield f"events has {plural(len(events), 'record')} not matching interventions"


def _of_update(moments: Sequence[tuple[int, int]], update: int) -> int | None:
    """The task in which the result places an intervention after this update."""
    return next((task for task, stated in moments if stated == update), None)


def _at_boundary(moments: Sequence[tuple[int, int]], task: int) -> int:
    """The update at which the result places a task boundary."""
    return next((update for stated, update in moments if stated == task), 0)


# Both --------------------------------------------------------------------------------------------------------------


def _interventions(result: Result, due: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Compare the recorded interventions with the scheduled ones, by task and update, for each network."""
    until, roles = result.run.get("until"), result.run.get("roles")
    expected = [moment for moment in due if until is None or moment[1] <= until]
    for role in sorted({record.role for record in result.plasticity}):
        if roles is not None and role not in roles:
            continue
        found = [(record.task, record.update) for record in result.interventions if record.role == role]
        if found != expected:
            yield (
                f"interventions has {plural(len(found), 'record')} of the {role}, not those of the schedule, which "
                f"gives {len(expected)}"
            )


def _measured(result: Result, found: Sequence[Any], expected: Sequence[Any]) -> Iterator[str]:
    if list(dict.fromkeys(found)) != list(expected):
        yield f"plasticity has {plural(len(found), 'measurement')}, not those after the start and at the end of tasks"


def _record(task: BaseModel) -> accuracy.TaskRecord:
    return accuracy.TaskRecord(**_only(task, accuracy.TaskRecord))


def _curve(result: Result) -> list[returns.Evaluation]:
    return [returns.Evaluation(**_only(point, returns.Evaluation)) for point in result.returns]


def _events(result: Result) -> list[returns.Event]:
    return [returns.Event(**_only(event, returns.Event)) for event in result.events]


def _only(part: BaseModel, cls: Any) -> Mapping[str, Any]:
    return {key: value for key, value in part if key in cls.__dataclass_fields__}


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after
