"""A few gradient steps on a representative batch, outside the training and without a trace in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.optimizer_state import forget_all

Objective = Callable[[TensorDictBase], Tensor]


def finetune(
    network: Network,
    batch: TensorDictBase,
    objective: Objective,
    *,
    steps: int,
    seconds: float | None,
    lr: float,
    minibatch: int,
) -> int:
    """Take Adam steps on an objective; return how many.

    Eval mode; gradients are left as they were. The steps have an optimizer of their own, and the network's forgets all
    that it knew of the weights they moved.

    Args:
        network: The network, changed in place.
        batch: Representative batch.
        objective: A scalar to make small, of a part of the batch.
        steps: How many.
        seconds: Step for so long instead, as far as whole steps go.
        lr: Learning rate.
        minibatch: Samples per step, drawn without replacement until the batch is used up.
    """
    parameters = [p for p in network.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    gradients = [p.grad for p in parameters]
    parts, taken, start = _minibatches(batch, minibatch, network.generator), 0, time.perf_counter()
    try:
        with as_evaluated(network.module), torch.enable_grad():
            while taken < steps if seconds is None else time.perf_counter() - start < seconds:
                found = torch.autograd.grad(objective(next(parts)), parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, found, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                taken += 1
                if seconds is not None and network.device.type == "cuda":
                    torch.cuda.synchronize(network.device)  # else the clock measures how fast work is queued
    finally:
        for parameter, before in zip(parameters, gradients, strict=True):
            parameter.grad = before
    forget_all(network.optimizer, parameters)
    return taken


def _minibatches(batch: TensorDictBase, size: int, generator: torch.Generator) -> Iterator[TensorDictBase]:
    size = min(size, len(batch))
    while True:
        order = torch.randperm(len(batch), generator=generator)
        for index in order[: len(batch) // size * size].split(size):
            yield batch[index.to(batch.device)] if batch.device is not None else batch[index]
