"""MuJoCo robots, and an ant on ground with changing friction (Dohare et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.rl_env import RLEnvConfig
from plastibench.envs.vector_envs import import_extra, make_gymnasium_vec, match_name

ROBOTS = (
    *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum"),
    *("Pusher", "Reacher", "Swimmer", "Walker2d"),
)


@register_env("rl-mujoco-*", "A MuJoCo robot, for example rl-mujoco-half-cheetah", id="*")
@dataclass(frozen=True)
class MuJoCo(RLEnvConfig):
    """A MuJoCo robot of gymnasium, version 5."""

    id: str = option("half-cheetah", "ant, half-cheetah, hopper, humanoid, walker2d, ...")
    steps: int = option(1_000_000, "agent steps per task, summed over all parallel environments", low=1)
    envs: int = option(1, "number of parallel environments", low=1)

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create ``num_envs`` copies of the robot's environment; all tasks are the same."""
        import_extra("mujoco", "mujoco")
        return make_gymnasium_vec(f"{match_name(self.id, list(ROBOTS), 'robot')}-v5", num_envs, self.max_episode_steps)


@register_env("rl-slippery-ant", "MuJoCo ant on ground whose friction changes from task to task")
@dataclass(frozen=True)
class SlipperyAnt(MuJoCo):
    """An ant on ground whose friction is drawn log-uniformly for every task; the first task has normal friction."""

    version = 2  # in version 1, all bodies had equal friction, even in the first task; the ant itself is unaffected
    id: str = option("ant", "the robot")
    steps: int = option(200_000, "agent steps per task, summed over all parallel environments", low=1)
    tasks: int = option(10, "number of tasks", low=1)
    low: float = option(0.02, "smallest friction, relative to the normal friction", low=0.0001)
    high: float = option(2.0, "largest friction, relative to the normal friction", low=0.0001)
    friction_seed: int = option(0, "seed of the frictions, shared by all runs", low=0)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")

    @property
    def task_count(self) -> int:
        """The number of tasks set by ``tasks``."""
        return self.tasks

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create copies of the robot, with the task's sliding friction between all bodies and the ground."""
        envs: Any = super().make_vec(task, num_envs)
        for env in envs.envs:
            env.unwrapped.model.geom_friction[:, 0] *= self.friction(task)
        return envs

    def friction(self, task: int) -> float:
        """Return the sliding friction of a task, relative to the normal one (coefficient 1 for the ant)."""
        if not task:
            return 1.0
        exponent = np.random.default_rng([self.friction_seed, task]).uniform(math.log(self.low), math.log(self.high))
        return math.exp(exponent)
