"""Choose the runs that one process runs together; see :mod:`plastibench.nn.stack`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from plastibench.config.spec import RunSpec
from plastibench.sweeps.jobs import Job

_SMALLEST, _LARGEST = 4, 32  # runs in a stack: fewer save little time, and more hardly save any further time


def stack_key(spec: RunSpec) -> Hashable | None:
    """What runs must have in common to share a process; None if this run is better off in its own."""
    agent = spec.create("agent")
    if spec.run.device != "cpu" or not getattr(agent, "stackable", False) or agent.compile != "no":
        return None
    return spec.env[0], spec.agent[0], agent.precision, spec.run.deterministic


def next_group(waiting: Sequence[Job], free: int) -> list[Job]:
    """The jobs that the next process runs: the first one, and its share of those that can be stacked with it.

    Args:
        waiting: The jobs that can start, at least one.
        free: Number of processes that can start.
    """
    first, key = waiting[0], None if waiting[0].alone else stack_key(waiting[0].spec)
    if key is None:
        return [first]
    alike = [job for job in waiting if not job.alone and stack_key(job.spec) == key]
    size = min(_LARGEST, math.ceil(len(alike) / max(1, free)))
    return alike[:size] if size >= _SMALLEST else [first]
