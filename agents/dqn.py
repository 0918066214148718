"""Deep Q-networks (Mnih et al. 2015): double, dueling, distributional, n-step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent, OffPolicyConfig
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_agent
from plastibench.utils.seeding import generator

if TYPE_CHECKING:
    from plastibench.envs.rl_env import RLEnvironment


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
    "Double DQN on images, with the network of MinAtar or of the Nature paper",
    encoder="cnn",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@register_agent(
    "dqn-impala",
    "Double DQN on images, with the residual network of IMPALA",
    encoder="impala",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@register_agent(
    "dqn-vit",
    "Double DQN on images, with a small vision transformer",
    encoder="vit",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@dataclass(frozen=True)
class DQN(OffPolicyConfig):
    """DQN with its usual extensions, for discrete actions."""

    double: bool = option(
        True, "choose the next action by the network, value it by the target (van Hasselt et al. 2016)"
    )
    dueling: bool = option(False, "value and advantage streams (Wang et al. 2016)")
    atoms: int = option(1, "atoms of the return's distribution (C51: 51, Bellemare et al. 2017); 1: its mean", low=1)
    v_min: float = option(-10.0, "smallest return, with several atoms")
    v_max: float = option(10.0, "largest return, with several atoms")
    # Huber's loss regresses to a median, which rare terminal states do not move: on CartPole values grow without bound.
    loss: Literal["mse", "huber"] = option("mse", "of the TD error, with one atom")
    epsilon: float = option(0.05, "share of random actions after the decline", low=0, high=1)
    exploration: float = option(
        0.1, "share of the run's steps over which random actions decline from all", low=0, high=1
    )

    def __post_init__(self) -> None:
        if self.v_min >= self.v_max:
            raise ValueError(f"v-min {self.v_min} is not below v-max {self.v_max}")

    def build(self, env: Any, seed: int, device: torch.device) -> DQNAgent:
        """The agent for an environment."""
        stream = self.check(env)
        if not stream.num_actions:
            raise UserError("agent: DQN needs discrete actions; for continuous ones take sac-mlp")
        return DQNAgent(self, stream, seed, device)


class QNetwork(nn.Module):
    """Observations to the value of every action, or to logits over the atoms of its distribution."""

    def __init__(self, config: DQN, shape: tuple[int, ...], bytes_: bool, actions: int) -> None:
        super().__init__()
        self.encoder, features = config.encode(shape, bytes_)
        layers, features = config.hidden_layers(features)
        self.body = nn.Sequential(*layers)
        self.shape = (actions, config.atoms)
        self.advantage = nn.Linear(features, actions * config.atoms)
        self.value = nn.Linear(features, config.atoms) if config.dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """[B, ...] to [B, actions], or to [B, actions, atoms]."""
        features = self.body(self.encoder(observation))
        outputs = self.advantage(features).unflatten(1, self.shape)  # [B, A, atoms]
        if self.value is not None:
            outputs = self.value(features)[:, None] + outputs - outputs.mean(1, keepdim=True)
        return outputs.squeeze(2)


class DQNAgent(OffPolicyAgent):
    """One critic and its target."""

    config: DQN

    def __init__(self, config: DQN, stream: RLEnvironment, seed: int, device: torch.device) -> None:
        super().__init__(config, stream, seed, device)
        self._actions = stream.num_actions
        self._support = torch.linspace(config.v_min, config.v_max, config.atoms, device=device)
        self._exploration = generator(seed, "exploration")
        self._share = 0.0
        outputs = ["advantage", "value"] if config.dueling else ["advantage"]
        self._critic = self._add("critic", self._build, self._loss, outputs, target=True)

    def _build(self) -> nn.Module:
        return QNetwork(self.config, self.shape, self.bytes, self._actions)

    def set_progress(self, share: float) -> None:
        """The share of random actions declines linearly."""
        self._share = share

    @property
    def epsilon(self) -> float:
        """Probability of a random action now."""
        done = min(1.0, self._share / self.config.exploration) if self.config.exploration else 1.0
        return 1.0 + done * (self.config.epsilon - 1.0)

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Epsilon-greedy actions. [B]."""
        module = (modules or {}).get("critic", self._critic.module)
        best = self.expected(module(observation)).argmax(1).cpu()
        if greedy:
            return best
        draws = torch.rand(2, len(best), generator=self._exploration)
        return torch.where(draws[0] < self.epsilon, (draws[1] * self._actions).long(), best)

    def expected(self, outputs: Tensor) -> Tensor:
        """Action values from what the network returns. [B, A]."""
        return (outputs.softmax(2) * self._support).sum(2) if self.config.atoms > 1 else outputs

    def update(self, batch: TensorDictBase) -> None:
        """One step on the TD error."""
        batch = self.add_targets(self._shifted(batch))
        with self._autocast():
            losses, errors = self._losses(self._forward["critic"], batch)
        if "weight" in batch:
            batch["td_error"] = errors.detach()
            losses = losses * batch["weight"]
        loss = losses.mean()
        norm = self._critic.update(loss, batch)
        self._note(**{"loss": loss, "gradient-norm": norm})
        self._update_targets()

    @torch.no_grad()
    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Adds ``target``: values [B], or distributions [B, atoms]."""
        following = batch["next_observation"]
        reward = batch["reward"]
        with self._autocast():
            outputs = self._forward["critic-target"](following).float()
            chooser = self._forward["critic"](following).float() if self.config.double else outputs
        if self.config.atoms == 1:
            best = _at(outputs, chooser.argmax(1)) if self.config.double else outputs.amax(1)
            batch["target"] = reward + batch["discount"] * best
        else:
            action = self.expected(chooser).argmax(1)
            support = reward[:, None] + batch["discount"][:, None] * self._support
            batch["target"] = project(_at(outputs, action).softmax(1), support, self._support)
        return batch

    @torch.no_grad()
    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Q of actions. [B]."""
        module = (modules or {}).get("critic", self._critic.module)
        return _at(self.expected(module(observation)), action)

    def state_dict(self) -> dict[str, Any]:
        """Also where exploration stands."""
        return {**super().state_dict(), "exploration": self._exploration.get_state(), "share": self._share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._exploration.set_state(state["exploration"].cpu())
        self._share = state["share"]

    def _loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        return self._losses(module, batch)[0].mean()

    def _losses(self, module: Callable[..., Tensor], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Loss and size of the TD error of each transition, both [B]."""
        chosen = _at(module(batch["observation"]).float(), batch["action"])
        if self.config.atoms > 1:
            losses = -(batch["target"] * chosen.log_softmax(1)).sum(1)
            return losses, losses
        measure = F.smooth_l1_loss if self.config.loss == "huber" else F.mse_loss
        return measure(chosen, batch["target"], reduction="none"), (chosen - batch["target"]).abs()


def project(probability: Tensor, positions: Tensor, support: Tensor) -> Tensor:
    """A distribution moved onto an evenly spaced support, each atom split between its neighbours (C51, Alg. 1).

    Args:
        probability: [B, atoms]
        positions: Where its atoms lie. [B, atoms]
        support: Where they shall lie. [atoms]
    """
    low, high = support[0], support[-1]
    place = (positions.clamp(low, high) - low) / (high - low) * (len(support) - 1)  # [B, atoms]
    distance = (place[:, :, None] - torch.arange(len(support), device=support.device)).abs()
    return (probability[:, :, None] * (1 - distance).clamp_min(0)).sum(1)


def _at(outputs: Tensor, action: Tensor) -> Tensor:
    """The rows of the actions: [B, A, ...] and [B] to [B, ...]."""
    index = action.long().view(-1, 1, *[1] * (outputs.ndim - 2)).expand(-1, 1, *outputs.shape[2:])
    return outputs.gather(1, index).squeeze(1)
