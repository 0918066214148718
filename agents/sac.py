"""Soft actor-critic (Haarnoja et al. 2018), with automatic temperature, for continuous and for discrete actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent, OffPolicyConfig
from plastibench.config.options import option
from plastibench.config.registry import register_agent

if TYPE_CHECKING:
    from plastibench.envs.rl_env import RLEnvironment

_LOG_STD = -5.0, 2.0


@register_agent("sac-mlp", "Soft actor-critic with two critics, each with two hidden layers of 256 units; any actions")
@register_agent(
    "sac-cnn", "Soft actor-critic on images, with a CNN", encoder="cnn", hidden=(128,), lr=3e-4, batch_size=32
)
@register_agent(
    "sac-vit",
    "Soft actor-critic on images, with a small vision transformer",
    encoder="vit",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@dataclass(frozen=True)
class SAC(OffPolicyConfig):
    """SAC; the kind of the actions decides between the continuous and the discrete form (Christodoulou 2019)."""

    batch_size: int = option(256, "transitions per update", low=1)
    replay_ratio: float = option(1.0, "updates per step of the agent", low=0)
    tau: float = option(0.005, "share of the network that each target update takes over; 1: copy", low=0, high=1)
    target_every: int = option(1, "updates between target updates", low=1)
    clip: float = option(0.0, "largest gradient norm; 0: no clipping", low=0)
    critics: int = option(2, "critics in the ensemble, of which the smallest value counts", low=1)
    temperature: float = option(0.0, "weight of the entropy; 0: tuned to the target entropy", low=0)
    target_entropy: float | None = option(
        None, "entropy aimed at: minus this per action dimension (1), or this share of the largest if discrete (0.5)"
    )

    def build(self, env: Any, seed: int, device: torch.device) -> OffPolicyAgent:
        """The agent for an environment."""
        stream = self.check(env)
        kind = DiscreteSAC if stream.num_actions else ContinuousSAC
        return kind(self, stream, seed, device)


class Critics(nn.Module):
    """An ensemble of critics on one encoder."""

    def __init__(self, config: SAC, shape: tuple[int, ...], bytes_: bool, inputs: int, outputs: int) -> None:
        """``inputs``: dimensions of actions that are inputs; ``outputs``: actions that are outputs."""
        super().__init__()
        self.encoder, features = config.encode(shape, bytes_)
        layers = [config.hidden_layers(features + inputs) for _ in range(config.critics)]
        self.heads = nn.ModuleList(nn.Sequential(*hidden, nn.Linear(width, outputs)) for hidden, width in layers)
        self.output_names = [f"heads.{number}.{len(hidden)}" for number, (hidden, _) in enumerate(layers)]

    def forward(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Values [critics, B] of actions [B, action], or [critics, B, A] of all."""
        features = self.encoder(observation)
        if action is not None:
            features = torch.cat([features, action], 1)
        values = torch.stack([head(features) for head in self.heads])
        return values.squeeze(2) if action is not None else values


class Actor(nn.Module):
    """Observations to the parameters of the policy."""

    def __init__(self, config: SAC, shape: tuple[int, ...], bytes_: bool, outputs: int) -> None:
        super().__init__()
        self.encoder, features = config.encode(shape, bytes_)
        layers, features = config.hidden_layers(features)
        self.body = nn.Sequential(*layers)
        self.policy = nn.Linear(features, outputs)

    def forward(self, observation: Tensor) -> Tensor:
        """[B, ...] to [B, outputs]."""
        outputs: Tensor = self.policy(self.body(self.encoder(observation)))
        return outputs


class _SoftActorCritic(OffPolicyAgent):
    """What both forms share. The actor has an encoder of its own, so that work on the critic leaves it as it is."""

    config: SAC
    entropic = True

    def __init__(self, config: SAC, stream: RLEnvironment, seed: int, device: torch.device) -> None:
        super().__init__(config, stream, seed, device)
        self._set_up(stream)
        inputs, outputs, policy = self._sizes()

        def critics() -> Critics:
            return Critics(config, self.shape, self.bytes, inputs, outputs)

        def actor() -> Actor:
            return Actor(config, self.shape, self.bytes, policy)

        names = critics().output_names
        self._critic = self._add("critic", critics, self._critic_loss, names, target=True)
        self._actor = self._add("actor", actor, self._actor_loss, ["policy"], target=False)
        start = math.log(config.temperature) if config.temperature else 0.0
        self._log_temperature = torch.full((), start, device=device, requires_grad=not config.temperature)
        if not config.temperature:
            assert self._actor.optimizer is not None
            self._actor.optimizer.add_param_group({"params": [self._log_temperature]})
            self._actor.restarts.append(self._restart_temperature)

    def update(self, batch: TensorDictBase) -> None:
        """A step of the critics, of the actor, and of the temperature."""
        batch = self.add_targets(self._shifted(batch))
        with self._autocast():
            values = self._values(self._forward["critic"], batch)  # [critics, B]
        errors = values - batch["target"]
        losses = errors.square().sum(0)
        if "weight" in batch:
            batch["td_error"] = errors.detach().abs().mean(0)
            losses = losses * batch["weight"]
        loss = losses.mean()
        norm = self._critic.update(loss, batch)
        with self._autocast():
            policy_loss, entropy = self._policy(self._forward["actor"], batch)
        temperature = self._log_temperature.exp()
        self._actor.update(policy_loss + temperature * (entropy.detach() - self.target_entropy), batch)
        self._note(**{"loss": loss, "gradient-norm": norm, "entropy": entropy, "temperature": temperature})
        self._update_targets()

    def state_dict(self) -> dict[str, Any]:
        """Also the temperature."""
        return {**super().state_dict(), "temperature": self._log_temperature.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._log_temperature.data.copy_(state["temperature"])

    def extra_state(self) -> dict[str, Any]:
        """Also the temperature."""
        return {**super().extra_state(), "temperature": self._log_temperature.detach()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""
        super().load_extra_state(state)
        self._log_temperature.data.copy_(state["temperature"])

    @property
    def target_entropy(self) -> float:
        """What the temperature is tuned to."""
        raise NotImplementedError

    def _restart_temperature(self) -> None:
        assert self._actor.optimizer is not None
        self._log_temperature.data.zero_()
        self._actor.optimizer.state.pop(self._log_temperature, None)

    def _set_up(self, stream: RLEnvironment) -> None:
        """Take what is needed from the action space."""
        raise NotImplementedError

    def _sizes(self) -> tuple[int, int, int]:
        """Inputs and outputs of a critic that stand for actions, and outputs of the actor."""
        raise NotImplementedError

    def _values(self, critics: Callable[..., Tensor], batch: TensorDictBase) -> Tensor:
        """What critics expect of the batch's own actions. [critics, B]."""
        raise NotImplementedError

    def _policy(self, actor: Callable[..., Tensor], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Loss and entropy of the policy, both scalars."""
        raise NotImplementedError

    def _critic_loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        return (self._values(module, batch) - batch["target"]).square().sum(0).mean()

    def _actor_loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        return self._policy(module, batch)[0]


class ContinuousSAC(_SoftActorCritic):
    """Actions are tanh of a Gaussian, scaled to the bounds of the action space."""

    def _set_up(self, stream: RLEnvironment) -> None:
        low, high = (torch.from_numpy(bound).to(self.device) for bound in (stream.action_low, stream.action_high))
        self._middle, self._half = (high + low) / 2, (high - low) / 2

    def _sizes(self) -> tuple[int, int, int]:
        count = len(self._middle)
        return count, 1, 2 * count

    @property
    def target_entropy(self) -> float:
        """Minus the option per dimension (Haarnoja et al. 2018: 1)."""
        scale = self.config.target_entropy
        return -(1.0 if scale is None else scale) * len(self._middle)

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Drawn actions, or the middle of the policy. [B, action]."""
        if not greedy:
            return self.sample(observation, self._noise, modules)[0].cpu()
        mean = (modules or {}).get("actor", self._actor.module)(observation).chunk(2, 1)[0]
        return (mean.tanh() * self._half + self._middle).cpu()

    @torch.no_grad()
    def sample(
        self, observation: Tensor, draws: torch.Generator, modules: dict[str, nn.Module] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Drawn actions [B, action], and -α log π. [B]."""
        outputs = (modules or {}).get("actor", self._actor.module)(observation)
        action, log_probability = self._draw(outputs, self._normal(outputs, draws))
        return action, -self._log_temperature.exp() * log_probability

    @torch.no_grad()
    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Adds ``target`` [B] and the ``noise`` [B, action] that draws the actor's actions."""
        following = batch["next_observation"]
        with self._autocast():
            outputs = self._forward["actor"](following).float()
            action, log_probability = self._draw(outputs, self._normal(outputs, noise))
            values = self._forward["critic-target"](following, action).float().amin(0)
        soft = values - self._log_temperature.exp() * log_probability
        batch["target"] = batch["reward"] + batch["discount"] * soft
        batch["noise"] = self._normal(outputs, noise)
        return batch

    @torch.no_grad()
    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Smallest Q of actions. [B]."""
        values: Tensor = (modules or {}).get("critic", self._critic.module)(observation, action)
        return values.amin(0)

    def _values(self, critics: Callable[..., Tensor], batch: TensorDictBase) -> Tensor:
        values: Tensor = critics(batch["observation"], batch["action"]).float()
        return values

    def _policy(self, actor: Callable[..., Tensor], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        observation = batch["observation"]
        action, log_probability = self._draw(actor(observation).float(), batch["noise"])
        values = self._forward["critic"](observation, action).float().amin(0)
        loss = (self._log_temperature.detach().exp() * log_probability - values).mean()
        return loss, -log_probability.mean()

    def _normal(self, outputs: Tensor, noise: torch.Generator | None = None) -> Tensor:
        shape = (len(outputs), outputs.shape[1] // 2)
        return torch.randn(shape, generator=noise or self._noise, device=self.device)

    def _draw(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action [B, action] and its log-density [B], from the policy's parameters and standard normal noise."""
        mean, spread = outputs.chunk(2, 1)
        low, high = _LOG_STD
        log_std = low + (high - low) / 2 * (spread.tanh() + 1)
        before = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before)) + self._half.log()  # log |d action / d before|
        return before.tanh() * self._half + self._middle, (normal - squash).sum(1)


class DiscreteSAC(_SoftActorCritic):
    """Critics return the values of all actions, so expectations over the policy are exact."""

    def _set_up(self, stream: RLEnvironment) -> None:
        self._actions = stream.num_actions

    def _sizes(self) -> tuple[int, int, int]:
        return 0, self._actions, self._actions

    @property
    def target_entropy(self) -> float:
        """A share of the entropy of the uniform policy."""
        scale = self.config.target_entropy
        return (0.5 if scale is None else scale) * math.log(self._actions)

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Drawn actions, or the likeliest. [B]."""
        if not greedy:
            return self.sample(observation, self._noise, modules)[0].cpu()
        return (modules or {}).get("actor", self._actor.module)(observation).argmax(1).cpu()

    @torch.no_grad()
    def sample(
        self, observation: Tensor, draws: torch.Generator, modules: dict[str, nn.Module] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Drawn actions, and -α log π. [B] each."""
        logits = (modules or {}).get("actor", self._actor.module)(observation).float()
        uniform = torch.rand(logits.shape, generator=draws, device=self.device)
        action = (logits - (-uniform.log()).log()).argmax(1)  # Gumbel
        chosen = logits.log_softmax(1).gather(1, action[:, None]).squeeze(1)
        return action, -self._log_temperature.exp() * chosen

    @torch.no_grad()
    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Adds ``target``. [B]."""
        following = batch["next_observation"]
        with self._autocast():
            log_policy = self._forward["actor"](following).float().log_softmax(1)
            values = self._forward["critic-target"](following).float().amin(0)
        soft = (log_policy.exp() * (values - self._log_temperature.exp() * log_policy)).sum(1)
        batch["target"] = batch["reward"] + batch["discount"] * soft
        return batch

    @torch.no_grad()
    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Smallest Q of actions. [B]."""
        values = (modules or {}).get("critic", self._critic.module)(observation).amin(0)
        return values.gather(1, action.long()[:, None]).squeeze(1)

    def _values(self, critics: Callable[..., Tensor], batch: TensorDictBase) -> Tensor:
        values = critics(batch["observation"]).float()
        index = batch["action"].long()[None, :, None].expand(len(values), -1, 1)
        return values.gather(2, index).squeeze(2)

    def _policy(self, actor: Callable[..., Tensor], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        log_policy = actor(batch["observation"]).float().log_softmax(1)
        with torch.no_grad():
            values = self._forward["critic"](batch["observation"]).float().amin(0)
        policy = log_policy.exp()
        loss = (policy * (self._log_temperature.detach().exp() * log_policy - values)).sum(1).mean()
        return loss, -(policy * log_policy).sum(1).mean()
