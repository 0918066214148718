"""A contextual bandit whose paying actions are drawn anew for each task: plasticity loss of a critic in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.rl_env import RLEnvConfig, Frames, RLEnvironment
from plastibench.envs.datasets import load_dataset


@register_env(
    "rl-bandit-digits",
    "Contextual bandit: 400 digits, with newly drawn rewarded actions in each of 10 tasks; two minutes on a CPU",
)
@dataclass(frozen=True)
class DigitsBandit(RLEnvConfig):
    """A digit is shown; one action of ten pays. Which one is random for each image, and drawn anew for each task.

    The value function of every task must be memorised, as in relabelled supervised data; episodes last one step, so
    nothing is bootstrapped and every loss of return is the critic's. Images as in bsuite's bandit (Osband et al. 2020).
    """

    id: str = option("digits", "the data set whose training images are shown")
    steps: int = option(8_000, "steps of the agent in each task", low=1)
    envs: int = option(32, "copies that are stepped together", low=1)
    evaluate_every: int = option(4_000, "steps between evaluations", low=1)
    evaluation_episodes: int = option(400, "episodes per evaluation: by default one for each image", low=1)
    clear_replay: bool = option(True, "forget all transitions at a task switch")
    tasks: int = option(10, "tasks", low=1)
    images: int = option(400, "how many images", low=1)
    label_seed: int = option(0, "draws which action pays, which all runs share", low=0)

    @property
    def task_count(self) -> int:
        """As many as the option says."""
        return self.tasks

    @property
    def bounds(self) -> tuple[float, float]:
        """Random actions pay one time in ten."""
        return 0.1, 1.0

    def make(self, data_dir: str | Path = "data") -> RLEnvironment:
        """The stream itself; loads the data."""
        dataset = load_dataset(self.id, data_dir, train_size=self.images)
        images = dataset.train_images.astype(np.float32) / 255 - 0.5
        object.__setattr__(self, "_images", images)  # of a frozen dataclass: loaded once, and no option
        return RLEnvironment(self)

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """Bandits that show the same images in orders of their own."""
        images: npt.NDArray[np.float32] = self._images  # type: ignore[attr-defined]
        paying = np.random.default_rng([self.label_seed, task]).integers(0, 10, len(images))
        return BanditVectorEnv(images, paying, count)

    def observe(self, task: int, observation: Frames) -> Frames:
        """As shown: channels first already."""
        return observation


class BanditVectorEnv(VectorEnv[Any, Any, Any]):
    """Each step answers for the image shown, ends the episode, and shows the next image of a random order."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, images: npt.NDArray[np.float32], paying: npt.NDArray[np.int64], count: int) -> None:
        """``images`` [M, C, H, W]; ``paying``: the action that pays for each. [M]."""
        self.num_envs = count
        self.single_observation_space = spaces.Box(-0.5, 0.5, images.shape[1:], np.float32)
        self.single_action_space = spaces.Discrete(10)
        self.action_space = spaces.MultiDiscrete([10] * count)
        self._images, self._paying = images, paying

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Show the first images."""
        super().reset(seed=seed)
        self._order = np.empty(0, np.int64)
        return self._show(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """1 for the action that pays, else 0."""
        reward = (np.asarray(actions) == self._paying[self._shown]).astype(np.float64)
        ended = np.ones(self.num_envs, bool)
        final = self._images[self._shown]
        return self._show(), reward, ended, np.zeros(self.num_envs, bool), {"final_obs": final, "_final_obs": ended}

    def _show(self) -> npt.NDArray[np.float32]:
        while len(self._order) < self.num_envs:
            self._order = np.concatenate([self._order, self.np_random.permutation(len(self._images))])
        self._shown, self._order = self._order[: self.num_envs], self._order[self.num_envs :]
        return self._images[self._shown]
