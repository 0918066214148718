"""Networks, losses and batches of Stable-Baselines3 algorithms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Loss, Network, seeded

SUPPORTED = "DQN, SAC, TD3, DDPG, PPO and A2C"


def networks_of(model: BaseAlgorithm, generator: torch.Generator) -> tuple[dict[str, Network], dict[str, Network]]:
    """Describe the trained networks of an algorithm, and its target networks, by role.

    DQN has a ``critic``. SAC, TD3 and DDPG have a ``critic`` (all Q-networks together) and an ``actor``. PPO and A2C
    have a ``policy``, which contains the actor and the value function.

    Args:
        model: The algorithm, set up with its environment.
        generator: Source of the randomness of interventions.

    Raises:
        UserError: The algorithm is not supported, or actor and critic share a feature extractor.
    """
    policy: Any = model.policy

    def network(role: str, module: Any, optimizer: Any, loss: Loss, build: Any, heads: Sequence[str]) -> Network:
        outputs = [name for head in heads for name in _last_linear(module, head)]
        return Network(module, optimizer, loss, fresh=build, role=role, outputs=outputs, generator=generator)

    networks: dict[str, Network] = {}
    targets: dict[str, Network] = {}
    if isinstance(model, DQN):
        build, heads = policy.make_q_net, ["q_net"]
        networks["critic"] = network("critic", policy.q_net, policy.optimizer, _dqn_loss, build, heads)
        targets["critic"] = network("critic", policy.q_net_target, None, _dqn_loss, build, heads)
    elif isinstance(model, SAC | TD3):
        actor, critic = policy.actor, policy.critic
        if policy.share_features_extractor and any(True for _ in critic.features_extractor.parameters()):
            raise UserError(
                "PlasticityCallback: actor and critic share a features extractor and cannot be modified separately; "
                "create the model with policy_kwargs={'share_features_extractor': False}"
            )
        critic_loss = _sac_critic_loss if isinstance(model, SAC) else _td3_critic_loss
        heads = [f"qf{number}" for number in range(len(critic.q_networks))]
        networks["critic"] = network("critic", critic, critic.optimizer, critic_loss, policy.make_critic, heads)
        targets["critic"] = network("critic", policy.critic_target, None, critic_loss, policy.make_critic, heads)
        actor_loss = _sac_actor_loss(model) if isinstance(model, SAC) else _td3_actor_loss(model)
        heads = ["mu", "log_std"]
        networks["actor"] = network("actor", actor, actor.optimizer, actor_loss, policy.make_actor, heads)
        if isinstance(model, TD3):
            targets["actor"] = network("actor", policy.actor_target, None, actor_loss, policy.make_actor, heads)
    elif isinstance(model, PPO | A2C):

        def build_policy() -> nn.Module:
            module: nn.Module = type(policy)(**policy._get_constructor_parameters())
            return module

        heads = ["action_net", "value_net"]
        networks["policy"] = network("policy", policy, policy.optimizer, _policy_loss(model), build_policy, heads)
    else:
        raise UserError(f"PlasticityCallback supports {SUPPORTED}; got {type(model).__name__}")
    for role, target in targets.items():
        networks[role].add_replica(target)
    return networks, targets


def draw_batch(model: Any, size: int, generator: torch.Generator) -> TensorDictBase:
    """Draw a batch with everything that the losses of :func:`networks_of` need.

    Off-policy algorithms draw from the replay buffer, on-policy algorithms from the rollout that the next updates use.
    The random states of NumPy and torch that training uses are not affected.

    Args:
        model: The algorithm.
        size: Number of transitions, drawn with replacement (off-policy), or at most this many (on-policy).
        generator: A CPU generator.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with _isolated(seed), torch.no_grad():
        if isinstance(model, OnPolicyAlgorithm):
            return _rollout(model, next(model.rollout_buffer.get(size)))
        assert isinstance(model.replay_buffer, ReplayBuffer)
        return _transitions(model, model.replay_buffer.sample(size, env=model._vec_normalize_env))


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    before = np.random.get_state()  # noqa: NPY002 - what the buffers draw from
    try:
        with seeded(seed):
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


# Batches ---------------------------------------------------------------------------------------------------------


def _transitions(model: Any, data: Any) -> TensorDictBase:
    """Transitions with the targets of the critic's loss, computed as the algorithm does."""
    size = len(data.rewards)
    discounts = getattr(data, "discounts", None)
    discounts = model.gamma if discounts is None else discounts
    following, noise = data.next_observations, None
    if isinstance(model, DQN):
        values = model.q_net_target(following).amax(1, keepdim=True)
    elif isinstance(model, SAC):
        action, log_probability = _sample(model.actor, following, _normal(data.actions))
        values = torch.cat(model.critic_target(following, action), 1).amin(1, keepdim=True)
        values = values - _temperature(model) * log_probability
        noise = _normal(data.actions)
    else:
        jitter = (_normal(data.actions) * model.target_policy_noise).clamp(
            -model.target_noise_clip, model.target_noise_clip
        )
        action = (model.actor_target(following) + jitter).clamp(-1, 1)
        values = torch.cat(model.critic_target(following, action), 1).amin(1, keepdim=True)
    content = {
        "observation": _as_tensors(data.observations, size),
        "action": data.actions,
        "target": data.rewards + (1 - data.dones) * discounts * values,
    }
    if noise is not None:
        content["noise"] = noise
    return TensorDict(content, batch_size=[size])


def _rollout(model: Any, data: Any) -> TensorDictBase:
    """Part of a rollout; advantages are normalized here, because a loss may be computed in smaller parts."""
    advantages = data.advantages
    if model.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    content = {
        "observation": _as_tensors(data.observations, len(advantages)),
        "action": data.actions,
        "advantage": advantages,
        "return": data.returns,
        "old_value": data.old_values,
        "old_log_prob": data.old_log_prob,
    }
    return TensorDict(content, batch_size=[len(advantages)])


def _as_tensors(observations: Any, size: int) -> Any:
    return TensorDict(observations, batch_size=[size]) if isinstance(observations, Mapping) else observations


def _observation(batch: TensorDictBase) -> Any:
    found = batch["observation"]
    return found.to_dict() if isinstance(found, TensorDictBase) else found


def _normal(like: Tensor) -> Tensor:
    return torch.randn(like.shape).to(like.device)  # drawn on the CPU, whose generator is isolated


# Losses ----------------------------------------------------------------------------------------------------------


def _dqn_loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    values = module(_observation(batch)).gather(1, batch["action"].long())
    return F.smooth_l1_loss(values, batch["target"])


def _td3_critic_loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    values = module(_observation(batch), batch["action"])
    return torch.stack([F.mse_loss(value, batch["target"]) for value in values]).sum()


def _sac_critic_loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    return 0.5 * _td3_critic_loss(module, batch)


def _sac_actor_loss(model: SAC) -> Loss:
    def loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
        observation = _observation(batch)
        action, log_probability = _sample(module, observation, batch["noise"])
        values = torch.cat(model.critic(observation, action), 1).amin(1, keepdim=True)
        return (_temperature(model) * log_probability - values).mean()

    return loss


def _td3_actor_loss(model: TD3) -> Loss:
    def loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
        observation = _observation(batch)
        return -model.critic.q1_forward(observation, module(observation)).mean()

    return loss


def _policy_loss(model: Any) -> Loss:
    """The loss of PPO or A2C."""
    discrete = not hasattr(model.action_space, "low")

    def loss(module: Any, batch: TensorDictBase) -> Tensor:
        action = batch["action"].long().flatten() if discrete and batch["action"].shape[1:] == (1,) else batch["action"]
        values, log_probability, entropy = module.evaluate_actions(_observation(batch), action)
        values, advantage = values.flatten(), batch["advantage"]
        if isinstance(model, PPO):
            ratio = (log_probability - batch["old_log_prob"]).exp()
            limit = model.clip_range(model._current_progress_remaining)  # type: ignore[operator]
            gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - limit, 1 + limit))
            if model.clip_range_vf is not None:
                limit = model.clip_range_vf(model._current_progress_remaining)  # type: ignore[operator]
                values = batch["old_value"] + (values - batch["old_value"]).clamp(-limit, limit)
        else:
            gain = advantage * log_probability
        bonus = -log_probability if entropy is None else entropy
        error = F.mse_loss(values, batch["return"])
        total: Tensor = -gain.mean() - model.ent_coef * bonus.mean() + model.vf_coef * error
        return total

    return loss


def _sample(actor: Any, observation: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions [B, A] of SAC's policy and their log-densities [B, 1], from standard normal noise [B, A].

    With state-dependent exploration (gSDE), this is the density of a Gaussian with the same mean and spread.
    """
    mean, log_std, _ = actor.get_action_dist_params(observation)
    before = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    action = before.tanh()
    return action, (normal - (1 - action.square() + 1e-6).log()).sum(1, keepdim=True)


def _temperature(model: Any) -> Tensor:
    found = model.log_ent_coef
    temperature: Tensor = model.ent_coef_tensor if found is None else found.detach().exp()
    return temperature


def _last_linear(module: nn.Module, head: str) -> list[str]:
    """Name of the linear layer of a head that produces its output; empty if there is none."""
    found = dict(module.named_modules()).get(head)
    if found is None:
        return []
    names = [name for name, child in found.named_modules(prefix=head) if isinstance(child, nn.Linear)]
    return names[-1:]
