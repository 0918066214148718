"""Train an RL agent in your own environment, alone and as a sequence of tasks.

Run it with ``python own_environment.py``; it takes seconds. On the command line:

    plastibench run gym --env.id own_environment:examples/Corridor-v0 --agent dqn-mlp --every 100 --intervention redo
    plastibench run corridor-turns --plugin own_environment.py --agent dqn-mlp --intervention none,redo
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np

import plastibench as pb
from plastibench.envs.rl_env import RLEnvConfig
from plastibench.envs.vector_envs import make_gymnasium_vec

ID = "examples/Corridor-v0"


class Corridor(gymnasium.Env):
    """Walk from the middle of a corridor to its right end, or to its left end if it is reversed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, turned: bool = False):
        """Create a corridor."""
        self.goal = -5 if turned else 5

    def reset(self, *, seed=None, options=None):
        """Return to the middle."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(-2, 3))
        return self._observation(), {}

    def step(self, action):
        """Move one place to the left or to the right."""
        self.place += 1 if action else -1
        reward = 1.0 if self.place == self.goal else -0.01
        return self._observation(), reward, abs(self.place) == 5, False, {}

    def _observation(self):
        return np.array([self.place / 5], np.float32)


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=Corridor, max_episode_steps=50)


@pb.register_env("corridor-turns", "A corridor that is reversed at every task boundary")
@dataclass(frozen=True)
class Turns(RLEnvConfig):
    """Every option is a flag: ``--env.tasks 4``."""

    id: str = pb.option(ID, "the environment")
    steps: int = pb.option(400, "agent steps per task", low=1)
    evaluate_every: int = pb.option(200, "agent steps between evaluations", low=1)
    tasks: int = pb.option(2, "number of tasks", low=1)

    @property
    def task_count(self) -> int:
        """The number of tasks."""
        return self.tasks

    def make_vec(self, task: int, num_envs: int):
        """Create copies of the environment of a task."""
        return make_gymnasium_vec(self.id, num_envs, self.max_episode_steps, turned=task % 2 == 1)


def main():
    """Train in the environment, and in the sequence of tasks."""
    agent = {"hidden": (32,), "learning_starts": 100, "replay_ratio": 0.5, "lr": 1e-3}
    steps = {"id": ID, "steps": 800, "evaluate_every": 400}
    alone = pb.train("gym", "dqn-mlp", "redo", every=100, env_options=steps, agent_options=agent, progress=False)
    print(f"corridor: return {alone.final:.2f}")
    tasks = pb.train("corridor-turns", "dqn-mlp", "redo", agent_options=agent, progress=False)
    print("turned corridor:", [(point.task, point.steps, round(point.value, 2)) for point in tasks.returns])


if __name__ == "__main__":
    main()
