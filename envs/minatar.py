"""MinAtar (Young & Tian 2019): five Atari games in 10x10 cells; alone, with permuted channels, or one after another."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.rl_env import RLEnvConfig, Frames, choose, make_gymnasium_vec, needs

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")


@register_env("rl-minatar-asterix", "MinAtar Asterix: 10x10 cells", id="asterix")
@register_env("rl-minatar-breakout", "MinAtar Breakout: 10x10 cells", id="breakout")
@register_env("rl-minatar-freeway", "MinAtar Freeway: 10x10 cells", id="freeway")
@register_env("rl-minatar-seaquest", "MinAtar Seaquest: 10x10 cells", id="seaquest")
@register_env("rl-minatar-space-invaders", "MinAtar Space Invaders: 10x10 cells", id="space-invaders")
@dataclass(frozen=True)
class MinAtar(RLEnvConfig):
    """One game, its own minimal set of actions, sticky with probability 0.1."""

    id: str = option("breakout", "asterix, breakout, freeway, seaquest or space-invaders")
    max_episode_steps: int = option(5_000, "cut episodes off after so many steps; 0: never", low=0)

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """Copies of the game."""
        return _game(self.id, count, self.max_episode_steps, minimal=True)


@register_env("rl-minatar-permuted", "MinAtar Breakout with a new channel permutation in each task")
@dataclass(frozen=True)
class PermutedMinAtar(MinAtar):
    """One game whose channels are permuted anew for each task; the first task shows them as they are."""

    version = 2  # in 1 a task could have the permutation of the one before it
    tasks: int = option(5, "tasks", low=1)
    permutation_seed: int = option(0, "draws the permutations, which all runs share", low=0)

    @property
    def task_count(self) -> int:
        """As many as the option says."""
        return self.tasks

    def observe(self, task: int, observation: Frames) -> Frames:
        """Channels first, in the order of the task."""
        images = np.moveaxis(observation, -1, 1)
        return images[:, self.permutation(task, images.shape[1])]

    def permutation(self, task: int, channels: int) -> np.ndarray[Any, Any]:
        """The order of the channels in a task. [channels]."""
        return _permutations(self.permutation_seed, task + 1, channels)[task]


@register_env("rl-minatar-sequence", "MinAtar games one after another, with all six actions")
@dataclass(frozen=True)
class MinAtarSequence(RLEnvConfig):
    """Games one after another, with the full set of six actions, channels padded to ten."""

    id: str = option("", "unused; see games")
    games: tuple[str, ...] = option(("breakout", "asterix", "space-invaders"), "the games of one round")
    rounds: int = option(1, "how often the games come round", low=1)
    max_episode_steps: int = option(5_000, "cut episodes off after so many steps; 0: never", low=0)

    def __post_init__(self) -> None:
        for game in self.games:
            choose(game, list(GAMES), "MinAtar game")

    @property
    def task_count(self) -> int:
        """Games times rounds."""
        return len(self.games) * self.rounds

    def vector(self, task: int, count: int) -> VectorEnv[Any, Any, Any]:
        """Copies of the task's game."""
        return _game(self.games[task % len(self.games)], count, self.max_episode_steps, minimal=False)

    def observe(self, task: int, observation: Frames) -> Frames:
        """Channels first, padded to the ten of the richest game."""
        images = np.moveaxis(observation, -1, 1)
        return np.pad(images, ((0, 0), (0, 10 - images.shape[1]), (0, 0), (0, 0)))


@functools.cache
def _permutations(seed: int, count: int, channels: int) -> list[np.ndarray[Any, Any]]:
    """So many orders of channels, the first as they are; none comes again before all others were there. [channels]."""
    draws = np.random.default_rng(seed)
    found = [np.arange(channels)]
    while len(found) < count:
        recent = found[1 - math.factorial(channels) :]
        order = draws.permutation(channels)
        if not any(np.array_equal(order, other) for other in recent):
            found.append(order)
    return found


def _game(name: str, count: int, max_episode_steps: int, minimal: bool) -> VectorEnv[Any, Any, Any]:
    needs("minatar.gym", "minatar")
    import gymnasium
    from minatar.gym import register_envs

    game = choose(name, list(GAMES), "MinAtar game")
    full = f"MinAtar/{game}-v{int(minimal)}"
    if full not in gymnasium.registry:
        register_envs()
    with warnings.catch_warnings():  # version 0 is no older than version 1: it is the full set of actions
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return make_gymnasium_vec(full, count, max_episode_steps)
