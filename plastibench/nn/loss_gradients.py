"""Gradients of the training loss over a representative batch, in pieces, beside those of the training itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.unit_statistics import PIECE, pieces
from plastibench.nn.units import tied


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trained weights of every Linear and Conv2d by the module's name, in registration order.

    Left out are weights that are computed from other parameters, as under weight normalisation, for they could not be
    written, and those that other modules own, too.
    """
    found, shared = {}, tied(module)
    for name, child in module.named_modules():
        weight = child.weight if isinstance(child, nn.Linear | nn.Conv2d) else None
        if isinstance(weight, nn.Parameter) and weight.requires_grad and weight not in shared:
            found[name] = weight
    return found


def gradients(
    network: Network, batch: TensorDictBase, parameters: Sequence[Tensor], piece: int = PIECE
) -> Iterator[tuple[int, tuple[Tensor | None, ...]]]:
    """Gradients of the mean loss of each piece of the batch, with the number of its samples.

    Eval mode, float32. ``.grad`` and modes are left as they were. The gradient of a parameter that has no part in the
    loss is None.

    Args:
        network: The network.
        batch: A large representative batch with what the loss needs.
        parameters: What to differentiate by.
        piece: Samples per forward and backward pass.
    """
    with as_evaluated(network.module):
        for part in pieces(batch, piece):
            with torch.enable_grad():
                loss = network.loss(network.module, part)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            yield len(part), found
