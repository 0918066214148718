"""Full episodes in environments of their own: what an agent is worth, and how well its critic knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plastibench.results.returns import discounted

if TYPE_CHECKING:
    from plastibench.agents.offpolicy_agent import OffPolicyAgent
    from plastibench.envs.rl_env import RLEnvConfig

LONGEST = 27_000  # steps after which an episode that does not end by itself is cut off; 108,000 frames of Atari


def play(
    scenario: RLEnvConfig,
    task: int,
    agent: OffPolicyAgent,
    modules: dict[str, nn.Module],
    seed: int,
    draws: torch.Generator | None = None,
) -> tuple[float, float]:
    """Mean return of full episodes, and the bias of the critic on the way.

    Args:
        scenario: Makes the environments; says how many episodes.
        task: Number of the task.
        agent: Who plays; none of its generators is drawn from.
        modules: What acts, by role: the networks themselves, or slow copies.
        seed: Of the environments.
        draws: Draws actions from the policy, for a critic that expects its entropy to be rewarded (``entropic``
            agents), on the agent's device; None: greedy actions.

    Returns:
        The mean return, and the mean of the critic's expectations minus the discounted returns that followed them, the
        entropy's part (of all actions but the first) included. Where an episode was cut off, what the critic expects
        there stands for what would have followed.
    """

    def choose(seen: npt.NDArray[Any]) -> tuple[Tensor, npt.NDArray[Any], npt.NDArray[Any]]:
        """Actions, what the critic expects of them, and what the policy's entropy adds to it."""
        shown = on_device(seen, agent.device)
        if draws is None:
            action, bonus = agent.act(shown, greedy=True, modules=modules), torch.zeros(len(shown))
        else:
            action, bonus = agent.sample(shown, draws, modules)
        return action.cpu(), agent.value(shown, action.to(agent.device), modules).cpu().numpy(), bonus.cpu().numpy()

    count = scenario.evaluation_episodes
    envs = config.make_vec(task, count)
    observation, _ = envs.reset(seed=seed)
    seen = config.stack_first(config.preprocess(task, observation))
    rewards: list[list[float]] = [[] for _ in range(count)]
    expected: list[list[float]] = [[] for _ in range(count)]
    totals, tails, gamma = np.zeros(count), np.zeros(count), agent.config.gamma
    playing = np.ones(count, bool)
    for step in range(LONGEST):
        action, values, bonus = choose(seen)
        observation, reward, terminated, truncated, info = envs.step(action.numpy())
        ended = terminated | truncated
        frames = config.preprocess(task, observation)
        for env in np.flatnonzero(playing):
            totals[env] += reward[env]
            if rewards[env]:
                rewards[env][-1] += gamma * float(bonus[env])
            rewards[env].append(float(agent.transform_reward(reward[env])))
            expected[env].append(float(values[env]))
            if not terminated[env] and (truncated[env] or step + 1 == LONGEST):
                last = (
                    config.preprocess(task, np.asarray(info["final_obs"][env])[None])
                    if truncated[env]
                    else frames[[env]]
                )
                _, value, more = choose(config.stack_next(seen[[env]], last, np.zeros(1, bool)))
                tails[env] = float(value[0] + more[0])
        seen = config.stack_next(seen, frames, ended)
        playing &= ~ended
        if not playing.any():
            break
    envs.close()
    followed = [discounted(rewards[env], gamma, tails[env]) for env in range(count)]
    bias = np.concatenate([np.asarray(e) - f for e, f in zip(expected, followed, strict=True)])
    return float(totals.mean()), float(bias.mean())


def on_device(seen: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Observations as a tensor where the networks are."""
    return torch.from_numpy(np.ascontiguousarray(seen)).to(device)
