"""Which runs can share a process, so that their networks are updated together (:mod:`plastibench.nn.stack`)."""

from __future__ import annotations

from typing import Any


def can_share_process(env: Any, agent: Any) -> bool:
    """Whether runs with these configs may take turns in one process.

    Random numbers must not come from generators of the process: dropout masks do, and so may the states of
    environments. An agent's class, and that of an RL environment, has to declare ``stackable`` itself, as a class
    attribute or a property: a subclass may build another network. Task streams get their generators.
    """
    return _declares(agent) and (env.kind != "rl" or _declares(env))


def _declares(config: object) -> bool:
    return "stackable" in vars(type(config)) and bool(config.stackable)  # type: ignore[attr-defined]
