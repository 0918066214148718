"""Policy evaluation: mean return of full episodes, and bias of the critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.envs.environment_check import check_action, check_finite, naming_environment, note
from plastibench.envs.rl_env import MAX_STEPS, RLEnvConfig
from plastibench.results.returns import discounted

_SHOWN = 250  # steps between two progress reports


def evaluate_policy(
    config: RLEnvConfig,
    task: int,
    agent: OffPolicyAgent,
    modules: dict[str, nn.Module],
    seed: int,
    draws: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, float]:
    """Play full episodes in new environments; return the mean return and the bias of the critic.

    The bias is the mean difference between the critic's values and the discounted returns that followed. These returns
    include the entropy bonus of all actions but the first. If an episode is truncated, the critic's value of its final
    state replaces the rest of the return.

    Args:
        config: Creates the environments, and defines the number of episodes.
        task: Number of the task.
        agent: The agent; its own random generators do not advance.
        modules: The modules that act, by role: the trained ones, or averaged copies.
        seed: Seed of the environments.
        draws: Samples actions from the policy, on the agent's device, for agents whose critic includes the entropy
            (``entropic``); None for greedy actions.
        progress: Called periodically with the number of finished episodes and the number of steps.

    Returns:
        The mean return, and the bias of the critic.
    """

    def choose(seen: npt.NDArray[Any]) -> tuple[Tensor, npt.NDArray[Any], npt.NDArray[Any]]:
        """Choose actions; return them with the critic's values and the entropy bonuses."""
        observation = to_tensor(seen, agent.device)
        if draws is None:
            action, bonus = agent.act(observation, greedy=True, modules=modules), torch.zeros(len(observation))
        else:
            action, bonus = agent.sample(observation, draws, modules)
        return (
            action.cpu(),
            agent.value(observation, action.to(agent.device), modules).cpu().numpy(),
            bonus.cpu().numpy(),
        )

    count = config.evaluation_episodes
    envs = config.make_vec(task, count)
    with naming_environment(config.id, "at the first reset of an evaluation"):
        observation, _ = envs.reset(seed=seed)
    first = config.preprocess(task, observation)
    check_finite(config.id, first, None, "at the first reset of an evaluation")
    seen = config.stack_first(first)
    rewards: list[list[float]] = [[] for _ in range(count)]
    expected: list[list[float]] = [[] for _ in range(count)]
    totals, tails, gamma = np.zeros(count), np.zeros(count), agent.config.gamma
    playing = np.ones(count, bool)
    for step in range(MAX_STEPS):
        action, values, bonus = choose(seen)
        check_action(action.numpy(), "in an evaluation")
        when = f"at step {step + 1:,} of an evaluation"
        with naming_environment(config.id, when):
            observation, reward, terminated, truncated, info = envs.step(action.numpy())
            frames = config.preprocess(task, observation)
        ended = terminated | truncated
        check_finite(config.id, frames, np.asarray(reward), when)
        for env in np.flatnonzero(playing):
            totals[env] += reward[env]
            if rewards[env]:
                rewards[env][-1] += gamma * float(bonus[env])
            rewards[env].append(float(agent.transform_reward(reward[env])))
            expected[env].append(float(values[env]))
            if not terminated[env] and (truncated[env] or step + 1 == MAX_STEPS):
                last = (
                    config.preprocess(task, np.asarray(info["final_obs"][env])[None])
                    if truncated[env]
                    else frames[[env]]
                )
                _, value, more = choose(config.stack_next(seen[[env]], last, np.zeros(1, bool)))
                tails[env] = float(value[0] + more[0])
        seen = config.stack_next(seen, frames, ended)
        playing &= ~ended
        if progress is not None and step % _SHOWN == _SHOWN - 1:
            progress(count - int(playing.sum()), step + 1)
        if not playing.any():
            break
    else:
        note(
            f"{config.id}: an evaluation stopped after {MAX_STEPS:,} steps, before all episodes had ended; set "
            "--env.max-episode-steps to make evaluations shorter"
        )
    envs.close()
    followed = [discounted(rewards[env], gamma, tails[env]) for env in range(count)]
    bias = np.concatenate([np.asarray(e) - f for e, f in zip(expected, followed, strict=True)])
    return float(totals.mean()), float(bias.mean())


def to_tensor(observation: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Convert observations to a tensor on a device."""
    return torch.from_numpy(np.ascontiguousarray(observation)).to(device)
