"""Deep Q-networks (Mnih et al. 2015): double, dueling, distributional, n-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent, OffPolicyConfig
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_agent
from plastibench.envs.rl_env import RLEnvironment
from plastibench.utils.seeding import generator

_SMALL_BUFFER = 100_000  # transitions; sixteen runs in one process keep as many buffers


@register_agent(
    "dqn-mlp",
    "Double DQN with hidden layers of 120 and 84 units, tuned for CartPole as in CleanRL",
    hidden=(120, 84),
    lr=2.5e-4,
    replay_ratio=0.1,
    target_every=50,
    exploration=0.5,
    buffer_size=10_000,
    learning_starts=10_000,
)
@register_agent(
    "dqn-cnn",
    "Double DQN for images, with the CNN of MinAtar or of Nature DQN",
    encoder="cnn",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@register_agent(
    "dqn-impala",
    "Double DQN for images, with the residual network of IMPALA",
    encoder="impala",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@register_agent(
    "dqn-vit",
    "Double DQN for images, with a small vision transformer",
    encoder="vit",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@dataclass(frozen=True)
class DQN(OffPolicyConfig):
    """DQN and its common extensions, for discrete actions."""

    double: bool = option(
        True, "double DQN: the network selects the next action, the target evaluates it (van Hasselt et al. 2016)"
    )
    dueling: bool = option(False, "dueling architecture: separate value and advantage heads (Wang et al. 2016)")
    atoms: int = option(
        1, "atoms of the return distribution (C51: 51, Bellemare et al. 2017); 1: only the mean", low=1, high=10_000
    )
    v_min: float = option(-10.0, "smallest atom of the return distribution; unused with one atom")
    v_max: float = option(10.0, "largest atom of the return distribution; unused with one atom")
    # The Huber loss regresses towards the median, which ignores rare terminal states, so values on CartPole diverge.
    loss: Literal["mse", "huber"] = option("mse", "loss of the TD error; unused with several atoms")
    epsilon: float = option(0.05, "final probability of a random action", low=0, high=1)
    exploration: float = option(
        0.1, "fraction of the run over which the probability of a random action decays from 1", low=0, high=1
    )

    @property
    def stackable(self) -> bool:
        """Whether several runs can share a process, to be updated together (:mod:`plastibench.agents.dqn_stack`)."""
        is_chain = self.encoder == "mlp" and not (self.layer_norm or self.dueling) and self.atoms == 1
        is_plain = self.precision == "float32" and self.compile == "no" and not self.random_shift
        return is_chain and is_plain and not self.prioritized and self.buffer_size <= _SMALL_BUFFER

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.v_min >= self.v_max:
            raise ValueError(f"v-min {self.v_min} is not below v-max {self.v_max}")

    def build(self, env: Any, seed: int, device: torch.device) -> DQNAgent:
        """Create the agent for an RL environment.

        Raises:
            UserError: The env is not an RL environment, or its actions are not discrete.
        """
        env = self.check(env)
        if not env.num_actions:
            raise UserError("agent: DQN needs discrete actions; use sac-mlp for continuous actions")
        return DQNAgent(self, env, seed, device)


class QNetwork(nn.Module):
    """Maps observations to the value of each action, or to logits over the atoms of its return distribution."""

    def __init__(self, config: DQN, shape: tuple[int, ...], uint8: bool, actions: int) -> None:
        super().__init__()
        self.encoder, features = config.encode(shape, uint8)
        layers, features = config.hidden_layers(features)
        self.body = nn.Sequential(*layers)
        self.shape = (actions, config.atoms)
        self.advantage = nn.Linear(features, actions * config.atoms)
        self.value = nn.Linear(features, config.atoms) if config.dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """Map [B, ...] to [B, A], or to [B, A, atoms]."""
        features = self.body(self.encoder(observation))
        outputs = self.advantage(features).unflatten(1, self.shape)  # [B, A, atoms]
        if self.value is not None:
            outputs = self.value(features)[:, None] + outputs - outputs.mean(1, keepdim=True)
        return outputs.squeeze(2)


class DQNAgent(OffPolicyAgent):
    """A Q-network and its target."""

    config: DQN

    def __init__(self, config: DQN, env: RLEnvironment, seed: int, device: torch.device) -> None:
        super().__init__(config, env, seed, device)
        self._actions = env.num_actions
        self._support = torch.linspace(config.v_min, config.v_max, config.atoms, device=device)
        self._exploration = generator(seed, "exploration")
        self._progress = 0.0
        outputs = ["advantage", "value"] if config.dueling else ["advantage"]
        self._critic = self._add("critic", self._build, self._loss, outputs, target=True)

    def _build(self) -> nn.Module:
        return QNetwork(self.config, self.shape, self.uint8, self._actions)

    def set_progress(self, progress: float) -> None:
        """Set the training progress in [0, 1], which determines :attr:`epsilon`."""
        self._progress = progress

    @property
    def epsilon(self) -> float:
        """Current probability of a random action; it decays linearly from 1."""
        done = min(1.0, self._progress / self.config.exploration) if self.config.exploration else 1.0
        return 1.0 + done * (self.config.epsilon - 1.0)

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Choose actions epsilon-greedily. [B]."""
        module = (modules or {}).get("critic", self._critic.module)
        best = self.best(module(observation))
        return best if greedy else self.explore(best)

    def best(self, outputs: Tensor) -> Tensor:
        """The actions with the highest values, from the network's outputs, on the CPU. [B]."""
        return self.expected(outputs).argmax(1).cpu()

    def explore(self, best: Tensor) -> Tensor:
        """Replace each action with a random one with probability :attr:`epsilon`. [B]."""
        draws = torch.rand(2, len(best), generator=self._exploration)
        return torch.where(draws[0] < self.epsilon, (draws[1] * self._actions).long(), best)

    def expected(self, outputs: Tensor) -> Tensor:
        """Action values [B, A] from the network's outputs."""
        return (outputs.softmax(2) * self._support).sum(2) if self.config.atoms > 1 else outputs

    def update(self, batch: TensorDictBase) -> None:
        """Make one optimizer step on the TD error."""
        batch = self.add_targets(self._shift_images(batch))
        with self._autocast():
            losses, errors = self._losses(self._forward["critic"], batch)
        if "weight" in batch:
            batch["td_error"] = errors.detach()
            losses = losses * batch["weight"]
        loss = losses.mean()
        self.count_update(loss, self._critic.update(loss, batch))

    def count_update(self, loss: Tensor, norm: Tensor) -> None:
        """Count an optimizer step with its loss and gradient norm, and update the target if it is time."""
        self._add_to_averages(**{"loss": loss, "gradient-norm": norm})
        self._update_targets()

    @torch.no_grad()
    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Add the ``target``: values [B], or distributions [B, atoms]."""
        following = batch["next_observation"]
        with self._autocast():
            outputs = self._forward["critic-target"](following).float()
            chooser = self._forward["critic"](following).float() if self.config.double else outputs
        batch["target"] = self.targets_of(outputs, chooser, batch["reward"], batch["discount"])
        return batch

    def targets_of(self, outputs: Tensor, chooser: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Compute the targets of transitions: values [B], or distributions [B, atoms].

        Args:
            outputs: The target network's outputs for the next observations. [B, A] or [B, A, atoms]
            chooser: The outputs that select the next actions: the network's with double DQN, otherwise ``outputs``.
            reward: Rewards. [B]
            discount: Discounts of the next values. [B]
        """
        if self.config.atoms == 1:
            best = _at(outputs, chooser.argmax(1)) if self.config.double else outputs.amax(1)
            return reward + discount * best
        action = self.expected(chooser).argmax(1)
        support = reward[:, None] + discount[:, None] * self._support
        return project(_at(outputs, action).softmax(1), support, self._support)

    @torch.no_grad()
    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Q-values of actions. [B]."""
        module = (modules or {}).get("critic", self._critic.module)
        return _at(self.expected(module(observation)), action)

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        return {**super().state_dict(), "exploration": self._exploration.get_state(), "progress": self._progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._exploration.set_state(state["exploration"].cpu())
        self._progress = state["progress"]

    def _loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        return self._losses(module, batch)[0].mean()

    def _losses(self, module: Callable[..., Tensor], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        return self.losses_of(module(batch["observation"]).float(), batch["action"], batch["target"])

    def losses_of(self, outputs: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and absolute TD error of each transition, both [B], from the network's outputs."""
        chosen = _at(outputs, action)
        if self.config.atoms > 1:
            losses = -(target * chosen.log_softmax(1)).sum(1)
            return losses, losses
        measure = F.smooth_l1_loss if self.config.loss == "huber" else F.mse_loss
        return measure(chosen, target, reduction="none"), (chosen - target).abs()


def project(probability: Tensor, positions: Tensor, support: Tensor) -> Tensor:
    """Project a distribution onto an evenly spaced support, splitting each atom between its neighbours (C51, Alg. 1).

    Args:
        probability: Probabilities of the atoms. [B, atoms]
        positions: Values of the atoms. [B, atoms]
        support: Values of the atoms of the projection. [atoms]
    """
    low, high = support[0], support[-1]
    index = (positions.clamp(low, high) - low) / (high - low) * (len(support) - 1)  # [B, atoms]
    distance = (index[:, :, None] - torch.arange(len(support), device=support.device)).abs()
    return (probability[:, :, None] * (1 - distance).clamp_min(0)).sum(1)


def _at(outputs: Tensor, action: Tensor) -> Tensor:
    """Select the outputs of the given actions: [B, A, ...] and [B] -> [B, ...]."""
    index = action.long().view(-1, 1, *[1] * (outputs.ndim - 2)).expand(-1, 1, *outputs.shape[2:])
    return outputs.gather(1, index).squeeze(1)
