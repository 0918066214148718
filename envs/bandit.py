"""A contextual bandit whose rewarded actions change with every task: shows plasticity loss of a critic in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import load_dataset
from plastibench.envs.rl_env import Frames, RLEnvConfig, RLEnvironment


@register_env(
    "rl-bandit-digits",
    "Contextual bandit on 400 digits; the rewarded actions are re-randomized in each of 10 tasks; two minutes on a CPU",
)
@dataclass(frozen=True)
class DigitsBandit(RLEnvConfig):
    """Each image of a digit has one rewarded action out of ten, drawn at random for every task.

    The agent must memorize the value function of every task, as with random labels in supervised learning. Episodes
    last one step, so values are not bootstrapped, and a drop in return can only come from the critic. Images come from
    a dataset, as in the bandit of bsuite (Osband et al. 2020).
    """

    stackable: ClassVar[bool] = True
    id: str = option("digits", "dataset that supplies the images")
    steps: int = option(8_000, "agent steps per task, summed over all parallel environments", low=1)
    envs: int = option(32, "number of parallel environments", low=1, high=10_000)
    evaluate_every: int = option(4_000, "agent steps between evaluations", low=1)
    evaluation_episodes: int = option(400, "episodes per evaluation; 400 is one per image", low=1, high=100_000)
    clear_replay: bool = option(True, "empty the replay buffer at each task boundary")
    tasks: int = option(10, "number of tasks", low=1)
    images: int = option(400, "number of images", low=1)
    label_seed: int = option(0, "seed of the rewarded actions, shared by all runs", low=0)

    @property
    def task_count(self) -> int:
        """The number of tasks set by ``tasks``."""
        return self.tasks

    @property
    def reference_returns(self) -> tuple[float, float]:
        """A random policy is rewarded in one of ten steps."""
        return 0.1, 1.0

    def make(self, data_dir: str | Path = "data") -> RLEnvironment:
        """Load the images and build the RL environment."""
        dataset = load_dataset(self.id, data_dir, train_size=self.images)
        images = dataset.train_images.astype(np.float32) / 255 - 0.5
        object.__setattr__(self, "_images", images)  # cached on the frozen dataclass; not an option
        return RLEnvironment(self)

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create bandits that show the same images; call :meth:`make` first."""
        images: npt.NDArray[np.float32] = self._images  # type: ignore[attr-defined]
        rewarded = np.random.default_rng([self.label_seed, task]).integers(0, 10, len(images))
        return BanditVectorEnv(images, rewarded, num_envs)

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Return the images unchanged: they are channels-first already."""
        return observations


class BanditVectorEnv(VectorEnv[Any, Any, Any]):
    """Bandits that share one random order of images. A step rewards the action and shows the next image."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, images: npt.NDArray[np.float32], rewarded: npt.NDArray[np.int64], num_envs: int) -> None:
        """Create the bandits.

        Args:
            images: [M, C, H, W]
            rewarded: The rewarded action of each image. [M]
            num_envs: Number of bandits.
        """
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-0.5, 0.5, images.shape[1:], np.float32)
        self.single_action_space = spaces.Discrete(10)
        self.action_space = spaces.MultiDiscrete([10] * num_envs)
        self._images, self._rewarded = images, rewarded

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Show the first images."""
        super().reset(seed=seed)
        self._order = np.empty(0, np.int64)
        return self._show(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return reward 1 for the rewarded action and 0 otherwise; every episode terminates."""
        reward = (np.asarray(actions) == self._rewarded[self._shown]).astype(np.float64)
        terminated = np.ones(self.num_envs, bool)
        info = {"final_obs": self._images[self._shown], "_final_obs": terminated}
        return self._show(), reward, terminated, np.zeros(self.num_envs, bool), info

    def _show(self) -> npt.NDArray[np.float32]:
        while len(self._order) < self.num_envs:
            self._order = np.concatenate([self._order, self.np_random.permutation(len(self._images))])
        self._shown, self._order = self._order[: self.num_envs], self._order[self.num_envs :]
        return self._images[self._shown]
