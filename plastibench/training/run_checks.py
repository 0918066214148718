"""Check a run before it starts: its number of updates, and whether its intervention can act at all."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import nn

from plastibench.config.errors import UserError, raise_all
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.interventions.base import overrides
from plastibench.interventions.class_checks import check_method
from plastibench.utils import distributed
from plastibench.utils.seeding import derive
from plastibench.utils.wording import plural

_OTHER_HOOKS = ("penalty", "before_update", "after_update", "evaluated")


class Plan(NamedTuple):
    """Counts of a run.

    Attributes:
        updates: Updates of the entire run. RL runs with n-step returns make slightly fewer.
        first_boundary: Updates before the first task boundary; None if there is one task.
    """

    updates: int
    first_boundary: int | None


def plan(spec: RunSpec, env: Any, agent: Any, starts: int | None = None) -> Plan:
    """Compute the counts of a run from the options of its env and agent.

    Args:
        spec: The run.
        env: Its task stream or RL environment.
        agent: Its agent.
        starts: Steps before an RL agent starts to learn; by default, as set in its options.
    """
    config = env.config
    if isinstance(env, TaskStream):
        sizes = env.task_sizes(derive(spec.run.seed, "stream"))
        updates = [math.ceil(size / agent.batch_size) * config.epochs for size in sizes]
        return Plan(sum(updates), updates[0] if len(updates) > 1 else None)
    envs, tasks, ratio = config.envs, config.task_count, agent.config.replay_ratio
    steps = -(-config.steps // envs) * envs  # steps per task
    starts = _learning_starts(agent) if starts is None else starts
    return Plan(int(ratio * max(0, steps * tasks - starts)), int(ratio * max(0, steps - starts)) if tasks > 1 else None)


def check_plan(spec: RunSpec, env: Any, agent: Any) -> list[str]:
    """Check that a run updates its agent and that its intervention can act.

    Returns:
        Warnings for the user.

    Raises:
        UserError: No update would be made, or the run would equal one without intervention.
    """
    found, wrong = plan(spec, env, agent), []
    if not found.updates and not isinstance(env, TaskStream):
        wrong.append(
            f"{spec.agent[0]} would make no update: learning starts after {plural(_learning_starts(agent), 'step')}, "
            f"and the run has {env.config.steps * env.config.task_count:,}; lower --agent.learning-starts or raise "
            "--env.steps"
        )
        found = plan(spec, env, agent, agent.batch_size)  # the most updates that these steps allow
    method, name, warnings = spec.create("intervention"), spec.intervention[0], []
    check_method(method)
    if found.updates and overrides(method, "intervene") and (reason := _why_never(spec, found)):
        if any(overrides(method, hook) for hook in _OTHER_HOOKS):
            warnings.append(f"{name} acts only during updates, since {reason}")
        else:
            wrong.append(f"{name} would never act, so the run would equal none: {reason}")
    raise_all(wrong)
    return warnings


def check_processes(spec: RunSpec, env: Any, agent: Any) -> None:
    """Check that several processes can share the training.

    Raises:
        UserError: The run is RL, a network has BatchNorm, or the processes cannot have a device each.
    """
    count = distributed.world_size()
    if count == 1:
        return
    if not isinstance(env, TaskStream):
        raise UserError(f"{spec.env[0]} trains in one process, not in {count}; start it without torchrun")
    distributed.check_device(spec.run.device)
    for network in agent.networks.values():
        for name, module in network.module.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise UserError(
                    f"{spec.agent[0]} has BatchNorm ({name}), whose statistics would differ between {count} processes; "
                    "choose another agent, or start it without torchrun"
                )


def _why_never(spec: RunSpec, found: Plan) -> str:
    """Explain why the run contains no intervention, and what to change; empty if it contains one."""
    every, until = spec.run.every, spec.run.until
    if every:
        if every >= found.updates:
            also = f", and --until {until} allows at most {until}" if until and until < found.updates - 1 else ""
            return f"--every {every} is not less than the {plural(found.updates, 'update')} of the run{also}"
        first = every
    elif found.first_boundary is None:
        most = plural(found.updates, "update")
        return f"{spec.env[0]} has one task and no task boundary; add --every N, with N below {most}"
    else:
        first = found.first_boundary
    if until is not None and until < first:
        return f"--until {until} is before the first intervention, which is due after {plural(first, 'update')}"
    return ""


def _learning_starts(agent: Any) -> int:
    return max(agent.config.learning_starts, agent.batch_size)
