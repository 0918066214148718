"""Classifiers of one architecture that are updated together; see :mod:`plastibench.nn.stack`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.agents.classifier import Classifier, mask_logits
from plastibench.nn.stack import NetworkStack, Stackable, stackable


class StackableClassifier:
    """A classifier that can be updated together with others.

    Attributes:
        agent: The classifier.
        key: Equal for classifiers that can be updated together.
    """

    def __init__(self, agent: Classifier, network: Stackable) -> None:
        self.agent, self.network = agent, network
        self.key: Hashable = (network.key, agent.normalize.key)
        self.is_current = network.is_current


def stackable_classifier(agent: Classifier) -> StackableClassifier | None:
    """Describe a classifier for stacking, or return None if it cannot be stacked."""
    if type(agent) is not Classifier or agent.config.precision != "float32" or agent.config.compile != "no":
        return None
    network = stackable(agent.networks["classifier"])
    return None if network is None else StackableClassifier(agent, network)


def update_together(
    members: Sequence[StackableClassifier],
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    batch_of: Callable[[int], TensorDictBase],
) -> None:
    """Make one update of every agent; the counterpart of :meth:`Classifier.update`.

    Args:
        members: Agents with the same key.
        images: The images of each agent's batch. S x uint8 [B, C, H, W]
        labels: Their labels. S x [B]
        batch_of: Returns the whole batch of an agent by its index, for penalties.
    """
    agents = [member.agent for member in members]
    stack = NetworkStack([member.network for member in members])
    inputs = torch.stack([agent.prepare_update(own) for agent, own in zip(agents, images, strict=True)])
    logits = stack(agents[0].normalize(inputs))  # [S, B, K]
    if any(agent.masked_classes is not None for agent in agents):
        logits = torch.stack([mask_logits(own, a.masked_classes) for own, a in zip(logits, agents, strict=True)])
    scores = logits.log_softmax(2)
    losses = F.nll_loss(scores.flatten(0, 1), torch.cat([*labels]), reduction="none").view(scores.shape[:2]).mean(1)
    norms = stack.update(losses, batch_of)
    with torch.no_grad():  # sums of single losses, which round in another order than those of the batch
        means = torch.stack([F.nll_loss(*each) for each in zip(scores.unbind(), labels, strict=True)])
    for agent, loss_and_norm in zip(agents, torch.stack([means, norms], 1).unbind(), strict=True):
        agent.count_update(loss_and_norm)
