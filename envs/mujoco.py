"""MuJoCo's robots, and an ant on ground whose friction changes (Dohare et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.rl_env import RLEnvConfig, choose, make_gymnasium_vec, needs

ROBOTS = (
    *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum"),
    *("Pusher", "Reacher", "Swimmer", "Walker2d"),
)


@register_env("rl-mujoco-*", "A MuJoCo robot, for example rl-mujoco-half-cheetah", id="*")
@dataclass(frozen=True)
class MuJoCo(RLEnvConfig):
    """One of gymnasium's robots, version 5."""

    id: str = option("half-cheetah", "ant, half-cheetah, hopper, humanoid, walker2d, …")
    steps: int = option(1_000_000, "steps of the agent in each task", low=1)
    envs: int = option(1, "copies that are stepped together", low=1)

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """Copies of the robot."""
        needs("mujoco", "mujoco")
        return make_gymnasium_vec(f"{choose(self.id, list(ROBOTS), 'robot')}-v5", count, self.max_episode_steps)


@register_env("rl-slippery-ant", "MuJoCo ant on ground whose friction changes from task to task")
@dataclass(frozen=True)
class SlipperyAnt(MuJoCo):
    """An ant on ground whose friction is drawn anew for each task, log-uniformly; the first task has the usual one."""

    version = 2  # in 1 other robots than the ant had the same friction everywhere, in the first task too
    id: str = option("ant", "the robot")
    steps: int = option(200_000, "steps of the agent in each task", low=1)
    tasks: int = option(10, "tasks", low=1)
    low: float = option(0.02, "smallest friction, in the usual one", low=0.0001)
    high: float = option(2.0, "largest friction, in the usual one", low=0.0001)
    friction_seed: int = option(0, "draws the frictions, which all runs share", low=0)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")

    @property
    def task_count(self) -> int:
        """As many as the option says."""
        return self.tasks

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """Copies with the sliding friction of the task between all bodies and the ground."""
        envs: Any = super().vector(task, count)
        for env in envs.envs:
            env.unwrapped.model.geom_friction[:, 0] *= self.friction(task)
        return envs

    def friction(self, task: int) -> float:
        """Sliding friction in a task over the usual one, whose coefficient is 1 for the ant."""
        if not task:
            return 1.0
        exponent = np.random.default_rng([self.friction_seed, task]).uniform(math.log(self.low), math.log(self.high))
        return math.exp(exponent)
