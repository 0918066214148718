"""Outputs of a network for a training batch of any format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network, eval_mode


def network_outputs(network: Network, module: nn.Module, batch: TensorDictBase) -> Tensor:
    """The module's outputs on a batch, with their autograd graph, in float32 or higher.

    Logits [B, K] of a classifier; action values [B, A] or their logits [B, A, atoms] of a DQN; values [critics, B] of
    SAC's critics; policy parameters [B, ...] of its actor.

    Only the loss knows how a batch becomes the input of the module, so the loss is computed once more: one extra
    forward pass. It runs in eval mode: dropout does not draw from the global random state, running statistics of
    BatchNorm do not change, and the outputs are those that an evaluation sees.

    Args:
        network: Provides the loss.
        module: Its module, or another one of the same architecture (an EMA copy).
        batch: The training batch.

    Raises:
        UserError: The loss does not call the module exactly once, or the module does not return one tensor.
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
        raise UserError(f"the {network.role}'s loss must call the module once, with one output tensor (found: {found})")
    return seen[0].float() if seen[0].itemsize < 4 else seen[0]  # a loss may run under autocast


def layer_outputs(network: Network, module: nn.Module, batch: TensorDictBase, names: Sequence[str]) -> list[Tensor]:
    """Outputs of the named submodules on a batch, with their autograd graph.

    Args:
        network: Provides the loss.
        module: Its module, or another one of the same architecture.
        batch: The inputs of the loss.
        names: The submodules. If one runs several times, its first output is used.
    """
    found: dict[str, Tensor] = {}
    layers = {module.get_submodule(name): name for name in names}

    def keep(layer: nn.Module, args: Any, output: Tensor) -> None:
        found.setdefault(layers[layer], output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        network.loss(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[name] for name in names]


def output_matrix(network: Network, module: nn.Module, batch: TensorDictBase, names: Sequence[str]) -> Tensor:
    """Outputs of the named submodules, flattened and concatenated to one row per sample. [B, K]."""
    return torch.cat([output.reshape(len(batch), -1) for output in layer_outputs(network, module, batch, names)], 1)
