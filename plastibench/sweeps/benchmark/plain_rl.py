"""Plain loops of DQN and SAC as a user would write them: gymnasium, and a replay buffer of plain tensors."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from plastibench.agents.dqn import DQNAgent
from plastibench.agents.sac import ContinuousSAC
from plastibench.config.errors import UserError
from plastibench.training.offpolicy import OffPolicyTrainer

_LOG_STD = -5.0, 2.0


class PlainLoop(ABC):
    """Steps environments, stores transitions in preallocated tensors, and learns from them.

    A subclass defines how to act and how to learn. Networks, sizes and the number of environments are those of a
    trainer; nothing else of plastibench is used.

    Attributes:
        device: The device of networks and transitions.
        config: The agent's options.
    """

    def __init__(self, trainer: OffPolicyTrainer) -> None:
        self.device = trainer.device
        self.config: Any = trainer.agent.config
        self._convert = trainer.env_config.preprocess
        self._envs = trainer.env_config.make_vec(0, trainer.env_config.envs)
        self._count = trainer.env_config.envs
        self._discrete = bool(trainer.env.num_actions)
        capacity = max(1, self.config.buffer_size // self._count) * self._count
        frame = trainer.env.frame_shape
        dtype = torch.from_numpy(np.empty(0, trainer.env.frame_dtype)).dtype
        self._observations = torch.zeros((capacity, *frame), dtype=dtype, device=self.device)
        self._following = torch.zeros((capacity, *frame), dtype=dtype, device=self.device)
        shape = () if self._discrete else self._envs.single_action_space.shape or ()
        kind = torch.int64 if self._discrete else torch.float32
        self._actions = torch.zeros((capacity, *shape), dtype=kind, device=self.device)
        self._rewards = torch.zeros(capacity, device=self.device)
        self._terminated = torch.zeros(capacity, device=self.device)
        self._next = self._size = 0
        self._owed = 0.0
        self.updates = 0
        observation, _ = self._envs.reset(seed=0)
        self._seen = torch.from_numpy(self._convert(0, observation)).to(self.device)

    @abstractmethod
    def act(self, observation: Tensor) -> Tensor:
        """Choose actions. [B] or [B, A]."""

    @abstractmethod
    def update(self) -> None:
        """Draw a batch and learn from it."""

    def step(self) -> None:
        """Step all environments and store the transitions."""
        with torch.no_grad():
            action = self.act(self._seen).cpu()
        observation, reward, terminated, truncated, info = self._envs.step(action.numpy())
        frames = torch.from_numpy(self._convert(0, observation))
        following = frames.clone()
        for env in np.flatnonzero(truncated & ~terminated):
            following[env] = torch.from_numpy(self._convert(0, np.asarray(info["final_obs"][env])[None])[0])
        rows = slice(self._next, self._next + self._count)
        self._observations[rows] = self._seen
        self._following[rows] = following.to(self.device)
        self._actions[rows] = action.to(self.device)
        self._rewards[rows] = torch.from_numpy(np.asarray(reward, np.float32)).to(self.device)
        self._terminated[rows] = torch.from_numpy(terminated.astype(np.float32)).to(self.device)
        self._next = (self._next + self._count) % len(self._rewards)
        self._size = min(self._size + self._count, len(self._rewards))
        self._seen = frames.to(self.device)

    def advance(self) -> None:
        """Step all environments, and make the updates that the replay ratio asks for."""
        self.step()
        self._owed += self.config.replay_ratio * self._count
        while self._owed >= 1:
            self.update()
            self._owed -= 1

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Observations, actions, rewards, next observations, and 1 for terminal states."""
        index = torch.randint(self._size, (self.config.batch_size,), device=self.device)
        columns = self._observations, self._actions, self._rewards, self._following, self._terminated
        observation, action, reward, following, terminated = (column[index] for column in columns)
        return observation, action, reward, following, terminated

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Adam with the agent's learning rate."""
        return torch.optim.Adam(parameters, lr=self.config.lr, eps=self.config.eps, fused=True)

    def descend(self, loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make one optimizer step."""
        optimizer.zero_grad()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(module.parameters(), self.config.clip)
        optimizer.step()

    @torch.no_grad()
    def follow(self, target: nn.Module, module: nn.Module) -> None:
        """Count an update, and move the target network towards the network if it is time."""
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            for old, new in zip(target.parameters(), module.parameters(), strict=True):
                old.lerp_(new, self.config.tau)


class PlainDQN(PlainLoop):
    """Double or single DQN."""

    def __init__(self, trainer: OffPolicyTrainer) -> None:
        super().__init__(trainer)
        self._network = trainer.agent.networks["critic"].fresh()
        self._target = copy.deepcopy(self._network).requires_grad_(False)
        self._optimizer = self.optimizer(self._network.parameters())
        self._choices = trainer.env.num_actions

    def act(self, observation: Tensor) -> Tensor:
        """Choose actions epsilon-greedily. [B]."""
        best = self._network(observation).argmax(1)
        random = torch.randint(self._choices, best.shape, device=self.device)
        return torch.where(torch.rand(best.shape, device=self.device) < 0.5, random, best)

    def update(self) -> None:
        """Draw a batch and make one optimizer step on the TD error."""
        observation, action, reward, following, terminated = self.batch()
        with torch.no_grad():
            values = self._target(following)
            chooser = self._network(following) if self.config.double else values
            best = values.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
            target = reward + self.config.gamma * (1 - terminated) * best
        value = self._network(observation).gather(1, action[:, None]).squeeze(1)
        measure = F.smooth_l1_loss if self.config.loss == "huber" else F.mse_loss
        self.descend(measure(value, target), self._network, self._optimizer)
        self.follow(self._target, self._network)


class PlainSAC(PlainLoop):
    """SAC for continuous actions, with automatic temperature tuning."""

    def __init__(self, trainer: OffPolicyTrainer) -> None:
        super().__init__(trainer)
        self._critics = trainer.agent.networks["critic"].fresh()
        self._actor = trainer.agent.networks["actor"].fresh()
        self._target = copy.deepcopy(self._critics).requires_grad_(False)
        self._log_temperature = torch.zeros((), device=self.device, requires_grad=True)
        self._optimizers = [
            self.optimizer(self._critics.parameters()),
            self.optimizer(self._actor.parameters()),
            self.optimizer([self._log_temperature]),
        ]
        low, high = trainer.env.action_low, trainer.env.action_high
        self._middle = torch.from_numpy((low + high) / 2).to(self.device)
        self._half = torch.from_numpy((high - low) / 2).to(self.device)
        self._target_entropy = -float(len(low))

    def act(self, observation: Tensor) -> Tensor:
        """Sample actions from the policy. [B, A]."""
        return self._draw(observation)[0] * self._half + self._middle

    def update(self) -> None:
        """Draw a batch, and make one step each of critics, actor and temperature."""
        observation, action, reward, following, terminated = self.batch()
        temperature = self._log_temperature.detach().exp()
        with torch.no_grad():
            next_action, log_probability = self._draw(following)
            values = self._target(following, next_action).amin(0) - temperature * log_probability
            target = reward + self.config.gamma * (1 - terminated) * values
        values = self._critics(observation, (action - self._middle) / self._half)
        loss = (values - target).square().mean(1).sum()
        self.descend(loss, self._critics, self._optimizers[0])
        new_action, log_probability = self._draw(observation)
        loss = (temperature * log_probability - self._critics(observation, new_action).amin(0)).mean()
        self.descend(loss, self._actor, self._optimizers[1])
        loss = -(self._log_temperature.exp() * (log_probability.detach() + self._target_entropy)).mean()
        self._optimizers[2].zero_grad()
        loss.backward()
        self._optimizers[2].step()
        self.follow(self._target, self._critics)

    def _draw(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1], [B, A], and their log-densities [B]."""
        mean, spread = self._actor(observation).chunk(2, 1)
        low, high = _LOG_STD
        policy = Normal(mean, (low + (high - low) / 2 * (spread.tanh() + 1)).exp())
        before = policy.rsample()
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before))
        return before.tanh(), (policy.log_prob(before) - squash).sum(1)


def plain_rl_loop(trainer: OffPolicyTrainer) -> PlainLoop:
    """Create the plain loop that does the work of a trainer.

    Raises:
        UserError: The agent, one of its options or the env is not supported.
    """
    config: Any = trainer.agent.config
    kinds: dict[type, Callable[[OffPolicyTrainer], PlainLoop]] = {DQNAgent: PlainDQN, ContinuousSAC: PlainSAC}
    kind = kinds.get(type(trainer.agent))
    if kind is None:
        raise UserError("bench rl has plain loops for dqn-* and, with continuous actions, for sac-* only")
    usual: dict[str, Any] = {
        "n_step": 1,
        "prioritized": False,
        "random_shift": 0,
        "optimizer": None,
        "precision": "float32",
    }
    usual |= {"storage": "device", "compile": "no", "atoms": 1, "temperature": 0.0, "target_entropy": None}
    for name, value in usual.items():
        if getattr(config, name, value) != value:
            raise UserError(f"bench rl: the plain loop has no --agent.{name.replace('_', '-')}; leave it out")
    if trainer.env_config.stack_size:
        raise UserError("bench rl: the plain loop does not stack frames; choose an env such as rl-cartpole")
    return kind(trainer)
