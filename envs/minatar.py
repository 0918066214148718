"""MinAtar (Young & Tian 2019): five Atari games on a 10x10 grid; single, with permuted channels, or in sequence."""

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
from plastibench.envs.rl_env import Frames, RLEnvConfig
from plastibench.envs.vector_envs import import_extra, make_gymnasium_vec, match_name

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")


@register_env("rl-minatar-asterix", "MinAtar Asterix: 10x10 cells", id="asterix")
@register_env("rl-minatar-breakout", "MinAtar Breakout: 10x10 cells", id="breakout")
@register_env("rl-minatar-freeway", "MinAtar Freeway: 10x10 cells", id="freeway")
@register_env("rl-minatar-seaquest", "MinAtar Seaquest: 10x10 cells", id="seaquest")
@register_env("rl-minatar-space-invaders", "MinAtar Space Invaders: 10x10 cells", id="space-invaders")
@dataclass(frozen=True)
class MinAtar(RLEnvConfig):
    """One game with its minimal action set; actions are sticky with probability 0.1."""

    id: str = option("breakout", "asterix, breakout, freeway, seaquest or space-invaders")
    max_episode_steps: int = option(5_000, "truncate episodes after this many steps (0: no limit)", low=0)

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create copies of the game."""
        return _make_game(self.id, num_envs, self.max_episode_steps, minimal=True)

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Move channels to the front."""
        return np.moveaxis(observations, -1, 1)


@register_env("rl-minatar-permuted", "MinAtar Breakout with a new channel permutation in each task")
@dataclass(frozen=True)
class PermutedMinAtar(MinAtar):
    """One game whose channels are permuted in every task but the first."""

    version = 2  # in version 1, a task could repeat the permutation of the previous task
    tasks: int = option(5, "number of tasks", low=1)
    permutation_seed: int = option(0, "seed of the permutations, shared by all runs", low=0)

    @property
    def task_count(self) -> int:
        """The number of tasks set by ``tasks``."""
        return self.tasks

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Move channels to the front and permute them."""
        images = np.moveaxis(observations, -1, 1)
        return images[:, self.permutation(task, images.shape[1])]

    def permutation(self, task: int, channels: int) -> np.ndarray[Any, Any]:
        """Return the channel order of a task. [channels]."""
        return _permutations(self.permutation_seed, task + 1, channels)[task]


@register_env("rl-minatar-sequence", "MinAtar games one after another, with all six actions")
@dataclass(frozen=True)
class MinAtarSequence(RLEnvConfig):
    """Several games in sequence, with the full set of six actions and channels padded to ten."""

    id: str = option("", "unused; see games")
    games: tuple[str, ...] = option(("breakout", "asterix", "space-invaders"), "games of one round, in order")
    rounds: int = option(1, "number of rounds", low=1)
    max_episode_steps: int = option(5_000, "truncate episodes after this many steps (0: no limit)", low=0)

    def __post_init__(self) -> None:
        for game in self.games:
            match_name(game, list(GAMES), "MinAtar game")

    @property
    def task_count(self) -> int:
        """Number of games times number of rounds."""
        return len(self.games) * self.rounds

    def make_vec(self, task: int, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Create copies of the game of a task."""
        return _make_game(self.games[task % len(self.games)], num_envs, self.max_episode_steps, minimal=False)

    def preprocess(self, task: int, observations: Frames) -> Frames:
        """Move channels to the front and pad them to ten, the largest number of any game."""
        images = np.moveaxis(observations, -1, 1)
        return np.pad(images, ((0, 0), (0, 10 - images.shape[1]), (0, 0), (0, 0)))


@functools.cache
def _permutations(seed: int, count: int, channels: int) -> list[np.ndarray[Any, Any]]:
    """Draw ``count`` channel orders, the identity first; none repeats before all others were used. [channels]."""
    draws = np.random.default_rng(seed)
    found = [np.arange(channels)]
    while len(found) < count:
        recent = found[1 - math.factorial(channels) :]
        order = draws.permutation(channels)
        if not any(np.array_equal(order, other) for other in recent):
            found.append(order)
    return found


def _make_game(name: str, num_envs: int, max_episode_steps: int, minimal: bool) -> VectorEnv[Any, Any, Any]:
    import_extra("minatar.gym", "minatar")
    import gymnasium
    from minatar.gym import register_envs

    game = match_name(name, list(GAMES), "MinAtar game")
    full = f"MinAtar/{game}-v{int(minimal)}"
    if full not in gymnasium.registry:
        register_envs()
    with warnings.catch_warnings():  # v0 is not outdated: it is the game with the full action set
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return make_gymnasium_vec(full, num_envs, max_episode_steps)
