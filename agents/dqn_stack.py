"""DQN agents with Q-networks of one architecture that act and are updated together; see :mod:`plastibench.nn.stack`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.dqn import DQNAgent, QNetwork
from plastibench.agents.encoders import Scale
from plastibench.nn.stack import NetworkStack, Stackable, StackedLayers, chain, stackable


class StackableDQN:
    """A DQN agent that can act and be updated together with others.

    Attributes:
        agent: The agent.
        key: Equal for agents that can be updated together.
    """

    def __init__(self, agent: DQNAgent, scale: Scale, network: Stackable, target_layers: Sequence[Any]) -> None:
        self.agent, self.scale, self.network, self.target_layers = agent, scale, network, target_layers
        self.key: Hashable = (network.key, agent.shape, scale.factor, agent.config.double, agent.config.loss)
        self.is_current = network.is_current


def stackable_dqn(agent: object) -> StackableDQN | None:
    """Describe an agent for stacking, or return None if it cannot be stacked."""
    if type(agent) is not DQNAgent or not agent.config.stackable:
        return None
    network, target = agent.networks["critic"], agent.targets["critic"].module
    parts, target_parts = _parts(network.module), _parts(target)
    if parts is None or target_parts is None:
        return None
    scale, *chained = parts
    found, target_layers = stackable(network, chained, watched=[target]), chain(*target_parts[1:])
    if found is None or target_layers is None:
        return None
    assert isinstance(scale, Scale)
    return StackableDQN(agent, scale, found, target_layers)


def _parts(module: nn.Module) -> list[nn.Module] | None:
    """The parts of a Q-network with one output per action and an MLP encoder, in order; the first is a ``Scale``."""
    if type(module) is not QNetwork or module.value is not None or module.shape[1] != 1:
        return None
    encoder = [*module.encoder.children()]
    if type(module.encoder) is not nn.Sequential or not encoder or type(encoder[0]) is not Scale:
        return None
    return [*encoder, module.body, module.advantage]


@torch.no_grad()
def act_together(members: Sequence[StackableDQN], observations: Sequence[Tensor]) -> list[Tensor]:
    """Choose actions epsilon-greedily; the counterpart of :meth:`DQNAgent.act`.

    Args:
        members: Agents with the same key.
        observations: Observations of each agent. S x [B, ...]

    Returns:
        The actions of each agent. S x [B]
    """
    layers = StackedLayers([member.network.layers for member in members])
    outputs = layers(members[0].scale(torch.stack([*observations])))  # [S, B, A]
    best = members[0].agent.best(outputs.flatten(0, 1)).view(outputs.shape[:2])
    return [member.agent.explore(own) for member, own in zip(members, best, strict=True)]


def update_together(members: Sequence[StackableDQN], batches: Sequence[TensorDictBase]) -> None:
    """Make one update of every agent; the counterpart of :meth:`DQNAgent.update`.

    Args:
        members: Agents with the same key.
        batches: The transitions of each agent; changed in place like those of a single agent. S x [B]
    """
    agent, scale = members[0].agent, members[0].scale  # their formulas and options are those of all
    stack = NetworkStack([member.network for member in members])
    columns = [dict(batch.items()) for batch in batches]  # faster than a lookup per name in a TensorDict

    def inputs(name: str) -> Tensor:
        return scale(torch.stack([own[name] for own in columns]))  # [S, B, ...]

    def rows(name: str) -> Tensor:
        return torch.cat([own[name] for own in columns])  # [S * B]

    with torch.no_grad():
        following = inputs("next_observation")
        outputs = StackedLayers([member.target_layers for member in members])(following).flatten(0, 1)
        chooser = stack(following).flatten(0, 1) if agent.config.double else outputs
        targets = agent.targets_of(outputs, chooser, rows("reward"), rows("discount"))
    values = stack(inputs("observation"))  # [S, B, A]
    losses = agent.losses_of(values.flatten(0, 1), rows("action"), targets)[0].view(values.shape[:2])

    def with_targets(index: int) -> TensorDictBase:
        batches[index]["target"] = targets.view(losses.shape)[index]
        return batches[index]

    norms = stack.update(losses.mean(1), with_targets)
    for member, own, norm in zip(members, losses.detach(), norms, strict=True):
        member.agent.count_update(own.mean(), norm)  # mean(1) rounds in another order
