"""Reinforcement learning: any gymnasium environment as a stream of tasks, each a vectorised environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import option
from plastibench.config.registry import register_env

Frames = npt.NDArray[Any]
_SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}  # the default shows a dead step after each episode
# Mean returns of random actions, measured over 1,000 episodes, and of the best policy there can be.
_BOUNDS = {"CartPole-v1": (22.5, 500.0)}


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
    """Any gymnasium environment by its id."""

    kind = "rl"

    id: str = option("CartPole-v1", "gymnasium id; images have their channels last")
    steps: int = option(100_000, "steps of the agent in each task", low=1)
    envs: int = option(8, "copies that are stepped together", low=1)
    evaluate_every: int = option(5_000, "steps between evaluations", low=1)
    evaluation_episodes: int = option(10, "episodes per evaluation, in environments of their own", low=1)
    max_episode_steps: int = option(0, "cut episodes off after so many steps; 0: as the environment says", low=0)
    clear_replay: bool = option(False, "forget all transitions at a task switch")

    frame_skip = 1
    version = 1  # see TaskStreamConfig.version

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Returns of a random and of a good policy, where they are known."""
        return None if self.max_episode_steps else _BOUNDS.get(self.id)

    @property
    def task_count(self) -> int:
        """How many tasks a run has; a subclass that changes something has several."""
        return 1

    def make(self, data_dir: str | Path = "data") -> RLEnvironment:
        """The stream itself."""
        return RLEnvironment(self)

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """``count`` copies of the environment of a task."""
        return make_gymnasium_vec(self.id, count, self.max_episode_steps)

    def observe(self, task: int, observation: Frames) -> Frames:
        """From what the environments return to what the agent sees: images channels first. [n, ...]."""
        if observation.dtype == np.float64:
            return observation.astype(np.float32)
        return np.moveaxis(observation, -1, 1) if observation.ndim == 4 else observation

    def first_seen(self, frames: Frames) -> Frames:
        """Observations at the start of episodes: frames stacked, missing ones zero. [n, ...]."""
        if not self.stack:
            return frames
        missing = np.zeros((len(frames), self.stack - 1, *frames.shape[1:]), frames.dtype)
        return np.concatenate([missing, frames[:, None]], 1)

    def next_seen(self, seen: Frames, frames: Frames, ended: npt.NDArray[np.bool_]) -> Frames:
        """Observations a step later; where an episode has ended, the first of the next one. [n, ...]."""
        if not self.stack:
            return frames
        following = np.concatenate([seen[:, 1:], frames[:, None]], 1)
        following[ended, :-1] = 0
        return following

    @property
    def stack(self) -> int:
        """Consecutive frames in an observation; 0: the environment shows all at once."""
        return 0


class RLEnvironment:
    """Tasks with one space of observations and actions; a switch is the change from one to the next.

    Attributes:
        scenario: What the tasks are.
        actions: How many discrete actions there are; 0: actions are continuous.
        low: Smallest continuous actions. [action]
        high: Largest ones. [action]
        frame: Shape and type of what the agent sees in a step.
    """

    def __init__(self, scenario: RLEnvConfig) -> None:
        """Make a stream.

        Raises:
            UserError: The environment does not exist, lacks its package, or has spaces that no agent here can use.
        """
        self.scenario = scenario
        self.task_count = scenario.task_count
        probe = config.make_vec(0, 1)
        observation, _ = probe.reset(seed=0)
        space = probe.single_action_space
        if not (
            isinstance(space, spaces.Discrete | spaces.Box) and isinstance(probe.single_observation_space, spaces.Box)
        ):
            raise UserError(
                f"{scenario.id}: observations must be arrays and actions discrete or a box, "
                f"not {probe.single_observation_space} and {space}"
            )
        if isinstance(space, spaces.Discrete) and space.start:
            raise UserError(f"{scenario.id}: actions must be counted from 0, not from {space.start}")
        if isinstance(space, spaces.Box) and space.dtype.kind != "f":
            raise UserError(f"{scenario.id}: actions of a box must be real numbers, not {space.dtype}")
        self.actions, self.low, self.high = 0, np.empty(0, np.float32), np.empty(0, np.float32)
        if isinstance(space, spaces.Discrete):
            self.actions = int(space.n)
        else:
            self.low, self.high = space.low.astype(np.float32), space.high.astype(np.float32)
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and self.low.ndim == 1):
            raise UserError(f"{scenario.id}: actions must be a vector with bounds, not {space}")
        shown = config.preprocess(0, observation)
        self.frame = shown.shape[1:], shown.dtype
        probe.close()

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of an observation, frames stacked."""
        shape, _ = self.frame
        return (self.config.stack_size, *shape) if self.config.stack_size else shape


def make_gymnasium_vec(name: str, count: int, max_episode_steps: int = 0, **options: Any) -> VectorEnv[Any, Any, Any]:
    """Vectorised copies of a gymnasium environment that reset in the step in which an episode ends.

    Raises:
        UserError: No such environment, or its package is not installed.
    """
    try:
        return gymnasium.make_vec(
            name,
            num_envs=count,
            vectorization_mode="sync",
            vector_kwargs=_SAME_STEP,
            max_episode_steps=max_episode_steps or None,
            **options,
        )
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise UserError(f"environment '{name}' lacks a package: {_first_line(error)}") from error
    except gymnasium.error.Error as error:
        hint = did_you_mean(name, gymnasium.registry)
        raise UserError(f"no environment '{name}' in gymnasium{hint}: {_first_line(error)}") from error


def needs(module: str, extra: str) -> Any:
    """Import a module that an optional dependency brings.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} is not installed; pip install 'plastibench[{extra}]'") from error


def choose(name: str, known: list[str], kind: str) -> str:
    """The one of ``known`` that is meant by ``name``, whatever its hyphens and capitals.

    Raises:
        UserError: None is.
    """
    plain: Callable[[str], str] = lambda text: text.replace("-", "").replace("_", "").lower()  # noqa: E731
    for candidate in known:
        if plain(candidate) == plain(name):
            return candidate
    raise UserError(f"no {kind} '{name}'{did_you_mean(name, known)} (there are {', '.join(sorted(known))})")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
