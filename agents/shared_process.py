"""Which runs can share a process, so that their networks are updated together (:mod:`plastibench.nn.stack`)."""

from __future__ import annotations

from typing import Any


def can_share_process(env: Any, agent: Any) -> bool:
    """Whether runs with these configs may share a process and be updated together.

    Their networks and environments must not draw random numbers from the generators of the process, as dropout does.
    The classes of the agent and of an RL environment must declare this themselves, with a class attribute or property
    ``stackable``, because a subclass may build a different network or environment. Task streams draw from generators
    that they are given.
    """
    return _declares(agent) and (env.kind != "rl" or _declares(env))


def _declares(config: Any) -> bool:
    return "stackable" in vars(type(config)) and bool(config.stackable)
