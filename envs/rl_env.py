"""Reinforcement learning: a gymnasium environment as a sequence of tasks, each a vectorized environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.environment_check import check_api, check_spaces, note, note_missing_time_limit
from plastibench.envs.vector_envs import make_gymnasium_vec

Frames = npt.NDArray[Any]
MAX_STEPS = 27_000  # steps of an evaluation episode; 108,000 Atari frames
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

    id: str = option(
        "CartPole-v1",
        "gymnasium id; module:Name-v0 imports a module that registers it",
        required="CartPole-v1, Acrobot-v1 or module:Name-v0",
    )
    steps: int = option(100_000, "agent steps per task, summed over all parallel environments", low=1)
    envs: int = option(8, "number of parallel environments", low=1, high=10_000)
    evaluate_every: int = option(5_000, "agent steps between evaluations", low=1)
    evaluation_episodes: int = option(10, "episodes per evaluation, in separate environments", low=1, high=100_000)
    max_episode_steps: int = option(0, "truncate episodes after this many steps (0: the environment's limit)", low=0)
    clear_replay: bool = option(False, "empty the replay buffer at each task boundary")
    channels: Literal["first", "last"] | None = option(
        None, "axis of the channels in image observations (default: the smaller one of the first and the last axis)"
    )

    frame_skip = 1
    version = 1  # see TaskStreamConfig.version

    @property
    def stackable(self) -> bool:
        """Whether runs can share a process (:mod:`plastibench.agents.shared_process`).

        These environments draw random numbers only from their own generators; others may not.
        """
        return self.id in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")

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

    def picture(self, envs: VectorEnv[Any, Any, Any], observations: Frames) -> Frames:
        """Render the current frame of the first environment, for videos. [height, width, 3], uint8 or 0 to 1.

        The environments are created within :func:`plastibench.envs.vector_envs.rendering`.
        """
        frames: Any = envs.render()
        return np.asarray(frames[0])

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Convert the observations of the environments to what the agent sees: channels first, float32. [n, ...]."""
        if observations.dtype.kind in "fu" and observations.dtype not in (np.float32, np.float16, np.uint8):
            observations = observations.astype(np.float32)
        if observations.ndim == 1:
            return observations[:, None]  # the agent sees a vector with one entry
        is_image = observations.ndim == 4
        return np.moveaxis(observations, -1, 1) if is_image and self._channels_last(observations) else observations

    def _channels_last(self, observations: Frames) -> bool:
        """Whether the last axis of [n, ...] holds the channels: the option, or else a guess from the shape.

        If two neighboring axes are equal, they are rows and columns, as on a board, which may have more channels than
        rows. Otherwise, the channels are the smaller of the first and the last axis.
        """
        if self.channels is not None:
            return self.channels == "last"
        first, middle, last = observations.shape[1:]
        square_first, square_last = first == middle, middle == last
        return last <= first if square_first == square_last else square_first

    def stack_first(self, frames: Frames) -> Frames:
        """Stack the first frames of episodes, padded with zeros. [n, stack_size, ...]."""
        if not self.stack_size:
            return frames
        missing = np.zeros((len(frames), self.stack_size - 1, *frames.shape[1:]), frames.dtype)
        return np.concatenate([missing, frames[:, None]], 1)

    def stack_next(self, stacked: Frames, frames: Frames, ended: npt.NDArray[np.bool_]) -> Frames:
        """Append the next frames to stacked observations; restart the stack after an episode. [n, stack_size, ...]."""
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
        space = probe.single_action_space
        check_spaces(config.id, probe)
        check_api(config.id, probe)
        observations, _ = probe.reset(seed=0)
        self.num_actions, self.action_low, self.action_high = 0, np.empty(0, np.float32), np.empty(0, np.float32)
        if isinstance(space, spaces.Discrete):
            self.num_actions = int(space.n)
        elif isinstance(space, spaces.Box):
            self.action_low, self.action_high = _rounded_inwards(space.low, space.high)
        frames = config.preprocess(0, observations)
        self.frame_shape: tuple[int, ...] = frames.shape[1:]
        self.frame_dtype: np.dtype[Any] = frames.dtype
        self._say_what_was_decided(probe, observations)
        probe.close()

    def _say_what_was_decided(self, probe: VectorEnv[Any, Any, Any], observations: Frames) -> None:
        config, generic = self.config, type(self.config).preprocess is RLEnvConfig.preprocess
        is_image = generic and observations.ndim == 4
        if config.channels is not None and not is_image:
            raise UserError(
                f"{config.id}: channels has no effect here; it applies only to image observations of gym environments"
            )
        if is_image and config.channels is None:
            found, other = ("last", "first") if config._channels_last(observations) else ("first", "last")
            shape = observations.shape[1:]
            note(
                f"{config.id}: observations of shape {shape} are treated as images with channels {found}; if this is "
                f"wrong, set --env.channels {other}"
            )
        if generic:
            note_missing_time_limit(config.id, probe, MAX_STEPS)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of an observation, including frame stacking."""
        return (self.config.stack_size, *self.frame_shape) if self.config.stack_size else self.frame_shape


def _rounded_inwards(low: Frames, high: Frames) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Bounds as float32 that do not exceed those of a float64 action space."""
    with np.errstate(over="ignore"):
        lower, upper = low.astype(np.float32), high.astype(np.float32)
    lower = np.where(lower < low, np.nextafter(lower, np.float32(np.inf)), lower)
    upper = np.where(upper > high, np.nextafter(upper, np.float32(-np.inf)), upper)
    return lower, np.maximum(lower, upper)
