"""What a network returns for a batch of its training data, whatever the batch looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network, eval_mode


def outputs(network: Network, module: nn.Module, batch: TensorDictBase) -> Tensor:
    """The module's outputs while the network's loss of the batch is computed, with their graph, at least float32.

    Logits [B, K] of a classifier; action values [B, A] or their logits [B, A, atoms] of a DQN, values [critics, B] of
    SAC's critics, policy parameters [B, ...] of its actor. Only the loss knows how a batch becomes the module's input,
    so it is computed once more: one extra forward pass. In eval mode: dropout draws nothing from the global random
    state, BatchNorm's running statistics stay, and the outputs are those that count when the network is evaluated.

    Args:
        network: Knows the loss.
        module: Its module, or another of the same architecture (a slow copy).
        batch: The training batch.

    Raises:
        UserError: The loss does not run the module once for one tensor.
    """
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        with eval_mode(module):
            network.loss(module, batch)
    finally:
        hook.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        found = type(seen[0]).__name__ if len(seen) == 1 else f"{len(seen)} calls"
        raise UserError(f"the {network.role}'s loss must call its module once and get one tensor (found: {found})")
    return seen[0].float() if seen[0].itemsize < 4 else seen[0]  # a loss may run under autocast


def of_layers(network: Network, module: nn.Module, batch: TensorDictBase, names: Sequence[str]) -> list[Tensor]:
    """What the named submodules return while the network's loss of the batch is computed, with their graph.

    Args:
        network: Knows the loss.
        module: Its module, or another of the same architecture.
        batch: With what the loss needs.
        names: The submodules; of one that runs several times the first run counts.
    """
    found: dict[str, Tensor] = {}
    places = {module.get_submodule(name): name for name in names}

    def keep(place: nn.Module, args: Any, output: Tensor) -> None:
        found.setdefault(places[place], output)

    hooks = [place.register_forward_hook(keep) for place in places]
    try:
        network.loss(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[name] for name in names]


def side_by_side(network: Network, module: nn.Module, batch: TensorDictBase, names: Sequence[str]) -> Tensor:
    """The same as one matrix, a row per sample: [B, K]."""
    return torch.cat([output.reshape(len(batch), -1) for output in of_layers(network, module, batch, names)], 1)
