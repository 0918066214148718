"""Soft actor-critic (Haarnoja et al. 2018) with automatic temperature tuning, for continuous and discrete actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent, OffPolicyConfig
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_agent
from plastibench.envs.rl_env import RLEnvironment

_LOG_STD = -5.0, 2.0


@register_agent("sac-mlp", "Soft actor-critic with two critics, 256-256 hidden units; continuous or discrete actions")
@register_agent(
    "sac-cnn", "Soft actor-critic for images, with a CNN", encoder="cnn", hidden=(128,), lr=3e-4, batch_size=32
)
@register_agent(
    "sac-vit",
    "Soft actor-critic for images, with a small vision transformer",
    encoder="vit",
    hidden=(128,),
    lr=3e-4,
    batch_size=32,
)
@dataclass(frozen=True)
class SAC(OffPolicyConfig):
    """SAC for continuous actions, or its discrete form (Christodoulou 2019) for discrete actions."""

    version = 2  # in version 1, interventions acted on the critic only after the actor's update

    batch_size: int = option(256, "transitions per update", low=1, high=1_000_000)
    replay_ratio: float = option(1.0, "updates per agent step", low=0)
    tau: float = option(0.005, "interpolation factor of target updates; 1: copy the network", low=0, high=1)
    target_every: int = option(1, "updates between target updates", low=1)
    clip: float = option(0.0, "maximum gradient norm; 0: no clipping", low=0)
    critics: int = option(2, "number of critics; the smallest of their values is used", low=1, high=1_000)
    temperature: float = option(0.0, "weight of the entropy; 0: tune it to reach the target entropy", low=0)
    target_entropy: float | None = option(
        None,
        "target entropy; continuous actions, scaled to [-1, 1]: minus this per dimension (default: 1); discrete "
        "actions: this fraction of the maximum (default: 0.5)",
    )

    def build(self, env: Any, seed: int, device: torch.device) -> OffPolicyAgent:
        """Create the agent for an RL environment.

        Raises:
            UserError: The env is not an RL environment.
        """
        env = self.check(env)
        kind = DiscreteSAC if env.num_actions else ContinuousSAC
        return kind(self, env, seed, device)


class Critics(nn.Module):
    """An ensemble of critics that share an encoder."""

    def __init__(self, config: SAC, shape: tuple[int, ...], uint8: bool, inputs: int, outputs: int) -> None:
        """Build the critics.

        Args:
            config: Options of encoder and hidden layers.
            shape: Shape of an observation.
            uint8: Whether observations are bytes.
            inputs: Action dimensions that each critic receives; 0 for discrete actions.
            outputs: Values that each critic returns: 1, or one per discrete action.
        """
        super().__init__()
        self.encoder, features = config.encode(shape, uint8)
        layers = [config.hidden_layers(features + inputs) for _ in range(config.critics)]
        self.heads = nn.ModuleList(nn.Sequential(*hidden, nn.Linear(width, outputs)) for hidden, width in layers)
        self.output_names = [f"heads.{number}.{len(hidden)}" for number, (hidden, _) in enumerate(layers)]

    def forward(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Values [critics, B] of the given actions [B, A]; without actions, values [critics, B, A] of all."""
        features = self.encoder(observation)
        if action is not None:
            features = torch.cat([features, action], 1)
        values = torch.stack([head(features) for head in self.heads])
        return values.squeeze(2) if action is not None else values


class Actor(nn.Module):
    """Maps observations to the parameters of the policy."""

    def __init__(self, config: SAC, shape: tuple[int, ...], uint8: bool, outputs: int) -> None:
        super().__init__()
        self.encoder, features = config.encode(shape, uint8)
        layers, features = config.hidden_layers(features)
        self.body = nn.Sequential(*layers)
        self.policy = nn.Linear(features, outputs)

    def forward(self, observation: Tensor) -> Tensor:
        """Map [B, ...] to [B, outputs]."""
        outputs: Tensor = self.policy(self.body(self.encoder(observation)))
        return outputs


class _SoftActorCritic(OffPolicyAgent):
    """Base class of both forms. Actor and critic have separate encoders, so they can be modified separately."""

    config: SAC
    entropic = True

    def __init__(self, config: SAC, env: RLEnvironment, seed: int, device: torch.device) -> None:
        super().__init__(config, env, seed, device)
        self._read_action_space(env)
        inputs, outputs, policy = self._sizes()

        def critics() -> Critics:
            return Critics(config, self.shape, self.uint8, inputs, outputs)

        def actor() -> Actor:
            return Actor(config, self.shape, self.uint8, policy)

        names = critics().output_names
        self._critic = self._add("critic", critics, self._critic_loss, names, target=True)
        start = math.log(config.temperature) if config.temperature else 0.0
        self._log_temperature = torch.full((), start, device=device, requires_grad=not config.temperature)
        tuned = [] if config.temperature else [self._log_temperature]
        self._actor = self._add("actor", actor, self._actor_loss, ["policy"], target=False, extra=tuned)
        if tuned:
            self._actor.restarts.append(self._restart_temperature)

    def update(self, batch: TensorDictBase) -> None:
        """Make one optimizer step on the critics, then one on the actor and the temperature."""
        batch = self.add_targets(self._shift_images(batch))
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
        self._add_to_averages(**{"loss": loss, "gradient-norm": norm, "entropy": entropy, "temperature": temperature})
        self._update_targets()

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        return {**super().state_dict(), "temperature": self._log_temperature.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._log_temperature.data.copy_(state["temperature"])

    def extra_state(self) -> dict[str, Any]:
        """What the losses of the trained networks need besides their weights: targets and temperature."""
        return {**super().extra_state(), "temperature": self._log_temperature.detach()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`extra_state`."""
        super().load_extra_state(state)
        self._log_temperature.data.copy_(state["temperature"])

    @property
    def target_entropy(self) -> float:
        """The entropy that the temperature is tuned to reach."""
        raise NotImplementedError

    def _restart_temperature(self) -> None:
        """Reset the temperature when the whole actor is reinitialized."""
        assert self._actor.optimizer is not None
        self._log_temperature.data.zero_()
        self._actor.optimizer.state.pop(self._log_temperature, None)

    def _read_action_space(self, env: RLEnvironment) -> None:
        """Read what the policy needs to know about the action space."""
        raise NotImplementedError

    def _sizes(self) -> tuple[int, int, int]:
        """Action inputs of a critic, outputs of a critic, and outputs of the actor."""
        raise NotImplementedError

    def _values(self, critics: Callable[..., Tensor], batch: TensorDictBase) -> Tensor:
        """The critics' values of the actions in the batch. [critics, B]."""
        raise NotImplementedError

    def _policy(self, actor: Callable[..., Tensor], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Loss and entropy of the policy. Both are scalars."""
        raise NotImplementedError

    def _critic_loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        return (self._values(module, batch) - batch["target"]).square().sum(0).mean()

    def _actor_loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        return self._policy(module, batch)[0]


class ContinuousSAC(_SoftActorCritic):
    """The policy is a tanh-squashed Gaussian over actions that are scaled to [-1, 1] in every dimension.

    Densities, entropies and the critics' inputs use these scaled actions, as in Stable-Baselines3. Otherwise the
    meaning of the target entropy would depend on the range, and a policy over a small range could never reach it. If
    the bounds of a dimension are equal, its action is constant and adds nothing to the entropy.
    """

    def _read_action_space(self, env: RLEnvironment) -> None:
        low, high = (bound.astype(np.float64) for bound in (env.action_low, env.action_high))
        free = high > low
        if not free.any():
            raise UserError(
                f"{env.config.id}: only one action is possible, because low equals high in every dimension of the "
                "action space; widen its bounds"
            )

        def on_device(values: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(self.device)

        half = high / 2 - low / 2  # halves first: the difference of large bounds overflows
        self._low, self._high = on_device(low), on_device(high)
        self._middle, self._half, self._free = on_device(high / 2 + low / 2), on_device(half), on_device(free)
        self._dimensions = int(free.sum())
        self._divisor = torch.where(self._half > 0, self._half, 1.0)

    def _sizes(self) -> tuple[int, int, int]:
        count = len(self._middle)
        return count, 1, 2 * count

    def _unscaled(self, action: Tensor) -> Tensor:
        """Convert scaled actions to actions of the environment. [B, A]."""
        return (action * self._half + self._middle).clamp(self._low, self._high)

    def _scaled(self, action: Tensor) -> Tensor:
        """Convert actions of the environment to [-1, 1]; 0 in constant dimensions. [B, A]."""
        return (action - self._middle) / self._divisor * self._free

    @property
    def target_entropy(self) -> float:
        """Return minus the option, times the number of dimensions that are not constant (Haarnoja et al. 2018: 1)."""
        scale = self.config.target_entropy
        return -(1.0 if scale is None else scale) * self._dimensions

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Sample actions, or return the mode of the policy. [B, A]."""
        if not greedy:
            return self.sample(observation, self._noise, modules)[0].cpu()
        mean = (modules or {}).get("actor", self._actor.module)(observation).chunk(2, 1)[0]
        return self._unscaled(mean.tanh()).cpu()

    @torch.no_grad()
    def sample(
        self, observation: Tensor, draws: torch.Generator, modules: dict[str, nn.Module] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample actions [B, A], and return them with -α log π [B]."""
        outputs = (modules or {}).get("actor", self._actor.module)(observation)
        action, log_probability = self._draw(outputs, self._normal(outputs, draws))
        return self._unscaled(action), -self._log_temperature.exp() * log_probability

    @torch.no_grad()
    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Add the ``target`` [B], and the ``noise`` [B, A] from which the actor's loss samples its actions."""
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
        """Smallest Q-values of actions. [B]."""
        values: Tensor = (modules or {}).get("critic", self._critic.module)(observation, self._scaled(action))
        return values.amin(0)

    def _values(self, critics: Callable[..., Tensor], batch: TensorDictBase) -> Tensor:
        values: Tensor = critics(batch["observation"], self._scaled(batch["action"])).float()
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
        """Scaled actions [B, A] and their log-densities [B], from the policy's parameters and normal noise."""
        mean, spread = outputs.chunk(2, 1)
        low, high = _LOG_STD
        log_std = low + (high - low) / 2 * (spread.tanh() + 1)
        before = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before))  # log |d action / d before|
        return before.tanh() * self._free, ((normal - squash) * self._free).sum(1)


class DiscreteSAC(_SoftActorCritic):
    """Critics return the values of all actions, so expectations over the policy are exact."""

    def _read_action_space(self, env: RLEnvironment) -> None:
        self._actions = env.num_actions

    def _sizes(self) -> tuple[int, int, int]:
        return 0, self._actions, self._actions

    @property
    def target_entropy(self) -> float:
        """A fraction of the entropy of the uniform policy."""
        scale = self.config.target_entropy
        return (0.5 if scale is None else scale) * math.log(self._actions)

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Sample actions, or return the most probable ones. [B]."""
        if not greedy:
            return self.sample(observation, self._noise, modules)[0].cpu()
        return (modules or {}).get("actor", self._actor.module)(observation).argmax(1).cpu()

    @torch.no_grad()
    def sample(
        self, observation: Tensor, draws: torch.Generator, modules: dict[str, nn.Module] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample actions [B], and return them with -α log π [B]."""
        logits = (modules or {}).get("actor", self._actor.module)(observation).float()
        uniform = torch.rand(logits.shape, generator=draws, device=self.device)
        action = (logits - (-uniform.log()).log()).argmax(1)  # Gumbel-max trick
        chosen = logits.log_softmax(1).gather(1, action[:, None]).squeeze(1)
        return action, -self._log_temperature.exp() * chosen

    @torch.no_grad()
    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Add the ``target``. [B]."""
        following = batch["next_observation"]
        with self._autocast():
            log_policy = self._forward["actor"](following).float().log_softmax(1)
            values = self._forward["critic-target"](following).float().amin(0)
        soft = (log_policy.exp() * (values - self._log_temperature.exp() * log_policy)).sum(1)
        batch["target"] = batch["reward"] + batch["discount"] * soft
        return batch

    @torch.no_grad()
    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Smallest Q-values of actions. [B]."""
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
