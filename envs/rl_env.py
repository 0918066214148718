"""Reinforcement learning: a gymnasium environment as a sequence of tasks, each a vectorized environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.vector_envs import make_gymnasium_vec

Frames = npt.NDArray[Any]
# Mean return of a random policy, measured over 1,000 episodes, and of an optimal policy.
_REFERENCE_RETURNS = {"CartPole-v1": (22.5, 500.0)}


@register_env("gym", "Any gymnasium environment (--env.id)")
@register_env(
    "rl-cartpole",
    "CartPole-v1; two minutes with dqn-mlp on a CPU",
    id="CartPole-v1",
    steps=500_000,
    envs=32,
    evaluate_every=25_000,
)
@register_env("rl-pendulum", "Pendulum-v1; four minutes with sac-mlp on a CPU", id="Pendulum-v1", steps=20_000, envs=4)
@dataclass(frozen=True)
class RLEnvConfig:
    """Any gymnasium environment, given by its id. A subclass can define several tasks."""

    kind = "rl"

    id: str = option("CartPole-v1", "gymnasium id; image observations must be channels-last")
    steps: int = option(100_000, "agent steps per task, summed over all parallel environments", low=1)
    envs: int = option(8, "number of parallel environments", low=1, high=10_000)
    evaluate_every: int = option(5_000, "agent steps between evaluations", low=1)
    evaluation_episodes: int = option(10, "episodes per evaluation, in separate environments", low=1, high=100_000)
    max_episode_steps: int = option(0, "truncate episodes after this many steps (0: the environment's limit)", low=0)
    clear_replay: bool = option(False, "empty the replay buffer at each task boundary")

    frame_skip = 1
    version = 1  # see TaskStreamConfig.version

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        """Returns of a random and an optimal policy, for normalization; None if unknown."""
        return None if self.max_episode_steps else _REFERENCE_RETURNS.get(self.id)

    @property
    def task_count(self) -> int:
        """Number of tasks in a run."""
        return 1

    @property
    def stack_size(self) -> int:
        """Number of consecutive frames in an observation; 0 disables frame stacking."""
        return 0

    def make(self, data_dir: str | Path = "data") -> RLEnvironment:
        """Build the RL environment."""
        return RLEnvironment(self)

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create ``num_envs`` copies of the environment of a task."""
        return make_gymnasium_vec(self.id, num_envs, self.max_episode_steps)

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Convert the observations of the environments to what the agent sees: channels first, float32. [n, ...]."""
        if observations.dtype == np.float64:
            return observations.astype(np.float32)
        return np.moveaxis(observations, -1, 1) if observations.ndim == 4 else observations

    def stack_first(self, frames: Frames) -> Frames:
        """Stack the first frames of episodes, padded with zeros. [n, stack_size, ...]."""
        if not self.stack_size:
            return frames
        missing = np.zeros((len(frames), self.stack_size - 1, *frames.shape[1:]), frames.dtype)
        return np.concatenate([missing, frames[:, None]], 1)

    def stack_next(self, stacked: Frames, frames: Frames, ended: npt.NDArray[np.bool_]) -> Frames:
        """Append the next frames to stacked observations; where an episode ended, start again. [n, stack_size, ...]."""
        if not self.stack_size:
            return frames
        following = np.concatenate([stacked[:, 1:], frames[:, None]], 1)
        following[ended, :-1] = 0
        return following


class RLEnvironment:
    """A sequence of RL tasks that share one observation space and one action space.

    Attributes:
        config: The options, which define the tasks.
        task_count: Number of tasks.
        num_actions: Number of discrete actions; 0 if actions are continuous.
        action_low: Smallest continuous actions. [action]
        action_high: Largest continuous actions. [action]
        frame_shape: Shape of the frame of a single step, without stacking.
        frame_dtype: Its data type.
    """

    def __init__(self, config: RLEnvConfig) -> None:
        """Create the environment of the first task once to read its spaces.

        Raises:
            UserError: The environment does not exist, a package is missing, or no agent supports its spaces.
        """
        self.config = config
        self.task_count = config.task_count
        probe = config.make_vec(0, 1)
        observations, _ = probe.reset(seed=0)
        space = probe.single_action_space
        if not (
            isinstance(space, spaces.Discrete | spaces.Box) and isinstance(probe.single_observation_space, spaces.Box)
        ):
            raise UserError(
                f"{config.id}: observations must be arrays and actions must be Discrete or Box, "
                f"not {probe.single_observation_space} and {space}"
            )
        if isinstance(space, spaces.Discrete) and space.start:
            raise UserError(f"{config.id}: discrete actions must start at 0, not at {space.start}")
        if isinstance(space, spaces.Box) and space.dtype.kind != "f":
            raise UserError(f"{config.id}: Box actions must be floating point, not {space.dtype}")
        self.num_actions, self.action_low, self.action_high = 0, np.empty(0, np.float32), np.empty(0, np.float32)
        if isinstance(space, spaces.Discrete):
            self.num_actions = int(space.n)
        else:
            self.action_low, self.action_high = space.low.astype(np.float32), space.high.astype(np.float32)
        bounded = np.isfinite(self.action_low).all() and np.isfinite(self.action_high).all()
        if not (bounded and self.action_low.ndim == 1):
            raise UserError(f"{config.id}: Box actions must be a vector with finite bounds, not {space}")
        frames = config.preprocess(0, observations)
        self.frame_shape: tuple[int, ...] = frames.shape[1:]
        self.frame_dtype: np.dtype[Any] = frames.dtype
        probe.close()

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of an observation, including frame stacking."""
        return (self.config.stack_size, *self.frame_shape) if self.config.stack_size else self.frame_shape
