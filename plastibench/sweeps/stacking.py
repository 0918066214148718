"""Choose the runs that one process runs together; see :mod:`plastibench.nn.stack`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from plastibench.agents.shared_process import can_share_process
from plastibench.config.spec import RunSpec
from plastibench.sweeps.jobs import Job

_SMALLEST, _LARGEST = 4, 16  # runs in a stack: fewer save little time; more save little more, and need memory


def stack_key(spec: RunSpec) -> Hashable | None:
    """A key that is equal for runs that may share a process; None if the run needs its own process."""
    env, agent = spec.create("env"), spec.create("agent")
    if spec.run.device != "cpu" or not can_share_process(env, agent) or agent.compile != "no":
        return None
    return spec.env[0], spec.agent[0], agent.precision, spec.run.deterministic


def make_groups(jobs: Sequence[Job], slots: int) -> list[list[Job]]:
    """Divide jobs into groups that share a process: those that can be stacked evenly, and each of the others alone.

    Args:
        jobs: The jobs.
        slots: Number of processes at a time.
    """
    alike: dict[Hashable, list[Job]] = {}
    for number, job in enumerate(jobs):
        key = stack_key(job.spec)
        alike.setdefault(("alone", number) if key is None else key, []).append(job)
    groups = []
    for same in alike.values():
        size = min(_LARGEST, math.ceil(len(same) / slots))
        size = size if size >= _SMALLEST else 1
        groups += [same[first : first + size] for first in range(0, len(same), size)]
    return groups
