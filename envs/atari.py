"""Atari 2600 games of the Arcade Learning Environment, preprocessed and stepped in its own vector environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.rl_env import RLEnvConfig, Frames, choose, needs


@register_env("rl-atari-*", "Any Atari game of the ALE, for example rl-atari-breakout", id="*")
@dataclass(frozen=True)
class Atari(RLEnvConfig):
    """84x84 grey frames, every fourth one, a maximum over two; rewards as the game counts them."""

    id: str = option("breakout", "any game of the ALE")
    sticky: float = option(0.25, "probability that the last action is repeated (Machado et al. 2018)", low=0, high=1)
    frames: int = option(4, "frames in an observation", low=1, high=64)
    noops: int = option(30, "at most so many idle steps at the start of an episode", low=0)
    evaluate_every: int = option(50_000, "steps between evaluations", low=1)

    frame_skip = 4

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """Copies of the game, one frame at a time; frames are stacked where they are remembered."""
        ale = needs("ale_py", "atari")
        vector_env = needs("ale_py.vector_env", "atari")
        name = choose(self.id, ale.roms.get_all_rom_ids(), "Atari game")
        limit = {"max_num_frames_per_episode": 4 * self.max_episode_steps} if self.max_episode_steps else {}
        env: VectorEnv[Any, Any, Any] = vector_env.AtariVectorEnv(
            name,
            count,
            stack_num=1,
            frameskip=self.frame_skip,
            repeat_action_probability=self.sticky,
            noop_max=self.noops,
            reward_clipping=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
            **limit,
        )
        return env

    def observe(self, task: int, observation: Frames) -> Frames:
        """The newest frame. [n, 84, 84]."""
        return observation[:, -1]

    @property
    def stack(self) -> int:
        """As many as the option says."""
        return self.frames
