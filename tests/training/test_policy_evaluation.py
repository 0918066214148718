"""The critic's bias in policy evaluation."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from plastibench.agents.dqn import DQN
from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.envs.rl_env import RLEnvironment
from plastibench.training.rollout import evaluate_policy
from tests.support.rl import make_env, tiny_rl


@pytest.mark.parametrize("name", ["dqn-mlp", "sac-mlp"])
def test_critic_bias_uses_the_given_modules(started: Any, name: str) -> None:
    trainer, agent = started(tiny_rl(agent=name), steps=80)
    observation = torch.from_numpy(trainer.seen)
    doubled = {role: copy.deepcopy(network.module) for role, network in agent.networks.items()}
    action = agent.act(observation, greedy=True)
    with torch.no_grad():
        assert torch.equal(agent.value(observation, action), agent.value(observation, action, doubled))
        for parameter in doubled["critic"].parameters():
            parameter.mul_(2.0)
        assert not torch.allclose(agent.value(observation, action), agent.value(observation, action, doubled))
    task = (trainer.env_config, 0, agent)
    assert evaluate_policy(*task, {}, 7)[1] != evaluate_policy(*task, {"critic": doubled["critic"]}, 7)[1]


class ExactCritic(OffPolicyAgent):
    """Samples one of two actions uniformly; its critic knows the exact soft values for a temperature of 1."""

    def __init__(self, env: RLEnvironment, ends: bool) -> None:
        super().__init__(DQN(gamma=0.9), env, 0, torch.device("cpu"))
        self.ends = ends

    def sample(self, observation: Tensor, draws: torch.Generator, modules: Any = None) -> tuple[Tensor, Tensor]:
        return torch.randint(2, (len(observation),), generator=draws), torch.full((len(observation),), math.log(2))

    def act(self, observation: Tensor, greedy: bool, modules: Any = None) -> Tensor:
        return torch.zeros(len(observation), dtype=torch.long)

    def value(self, observation: Tensor, action: Tensor, modules: Any = None) -> Tensor:
        left = 7 - observation.flatten() % 100 if self.ends else math.inf * torch.ones(len(observation))
        later = torch.where(left.isinf(), 0.0, 0.9 ** (left - 1))
        rewards = (1 - 0.9 * later) / (1 - 0.9)  # 1 + 0.9 + ... of `left` steps
        return rewards + math.log(2) * (rewards - 1)  # plus the entropy of all actions but the first


@pytest.mark.parametrize("name", ["tests/Terminated-v0", "tests/Truncated-v0"])
def test_exact_soft_values_have_no_bias(name: str) -> None:
    env = make_env("gym", id=name, evaluation_episodes=3, max_episode_steps=0)
    agent = ExactCritic(env, ends=name == "tests/Terminated-v0")
    value, bias = evaluate_policy(env.config, 0, agent, {}, 0, torch.Generator().manual_seed(0))
    assert value == 7 and bias == pytest.approx(0, abs=1e-4)
    _, greedy = evaluate_policy(env.config, 0, agent, {}, 0)
    assert greedy > 0.5  # returns of greedy episodes do not contain the entropy
