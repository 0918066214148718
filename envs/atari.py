"""Atari 2600 games of the Arcade Learning Environment, in its own vector environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.rl_env import Frames, RLEnvConfig
from plastibench.envs.vector_envs import import_extra, match_name


@register_env("rl-atari-*", "Any Atari game of the ALE, for example rl-atari-breakout", id="*")
@dataclass(frozen=True)
class Atari(RLEnvConfig):
    """84x84 greyscale frames, frame skip 4 with max-pooling over the last two frames, unclipped rewards."""

    id: str = option("breakout", "any game of the ALE")
    sticky: float = option(0.25, "probability of repeating the previous action (Machado et al. 2018)", low=0, high=1)
    frames: int = option(4, "stacked frames per observation", low=1, high=64)
    noops: int = option(30, "maximum number of no-op steps at the start of an episode", low=0)
    evaluate_every: int = option(50_000, "agent steps between evaluations", low=1)

    frame_skip = 4

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create copies of the game that return single frames; the replay buffer stacks them."""
        ale = import_extra("ale_py", "atari")
        vector_env = import_extra("ale_py.vector_env", "atari")
        name = match_name(self.id, ale.roms.get_all_rom_ids(), "Atari game")
        limit = {"max_num_frames_per_episode": 4 * self.max_episode_steps} if self.max_episode_steps else {}
        env: VectorEnv[Any, Any, Any] = vector_env.AtariVectorEnv(
            name,
            num_envs,
            stack_num=1,
            frameskip=self.frame_skip,
            repeat_action_probability=self.sticky,
            noop_max=self.noops,
            reward_clipping=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
            **limit,
        )
        return env

    def picture(self, envs: VectorEnv[Any, Any, Any], observations: Frames) -> Frames:
        """The greyscale frame that the agent sees; the vector environment does not render. [84, 84, 3]."""
        return np.repeat(observations[0, -1, :, :, None], 3, -1)

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Return the newest frame. [n, 84, 84]."""
        return observations[:, -1]

    @property
    def stack_size(self) -> int:
        """The number of frames set by ``frames``."""
        return self.frames
