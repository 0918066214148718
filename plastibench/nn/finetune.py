"""Take a few gradient steps on a representative batch, separately from training."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.nn.batches import minibatches
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.optimizer_state import clear_state

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
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Minimize an objective with Adam; return the number of steps taken.

    Runs in eval mode with its own optimizer; ``.grad`` is left as it was. The state of the network's optimizer for the
    trained parameters is cleared.

    Args:
        network: The network, changed in place.
        batch: Representative batch.
        objective: Maps a minibatch to the scalar to minimize.
        steps: Number of steps.
        seconds: Duration of the training; replaces ``steps`` if it is not None.
        lr: Learning rate.
        minibatch: Samples per step, drawn without replacement until the batch is used up.
        clock: Returns the time in seconds.
    """
    parameters = [p for p in network.module.parameters() if p.requires_grad]
    tiny = max((torch.finfo(p.dtype).tiny for p in parameters), default=0.0)  # in half precision, 1e-8 would round to 0
    optimizer = torch.optim.Adam(parameters, lr=lr, eps=max(1e-8, tiny))
    gradients = [p.grad for p in parameters]
    parts, taken, start = minibatches(batch, minibatch, network.generator), 0, clock()
    try:
        with as_evaluated(network.module), torch.enable_grad():
            while taken < steps if seconds is None else clock() - start < seconds:
                found = torch.autograd.grad(objective(next(parts)), parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, found, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                taken += 1
                if seconds is not None and network.device.type == "cuda":
                    torch.cuda.synchronize(network.device)  # otherwise only the launch of kernels is timed
    finally:
        for parameter, before in zip(parameters, gradients, strict=True):
            parameter.grad = before
    clear_state(network.optimizer, parameters)
    return taken
