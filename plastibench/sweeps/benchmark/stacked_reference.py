"""A plain PyTorch reference for networks that plastibench does not stack: vmap over several networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from plastibench.agents.images import crop_and_flip
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.task_buffer import all_samples


def stacked_reference(trainer: SupervisedTrainer, stack: int) -> Callable[[], None]:
    """Create a function that updates several networks on different batches with one vmapped pass.

    It does the work of :func:`~plastibench.sweeps.benchmark.plain_loop.plain_loop` for each network. In bfloat16, the
    entire forward pass is in bfloat16: under vmap, dropout of attention fails with autocast.

    Args:
        trainer: Supplies the data, the network and the options.
        stack: Number of networks, S.
    """
    config, device, normalize = trainer.agent.config, trainer.device, trainer.agent.normalize
    data = all_samples(trainer.buffer)
    images, labels = data["image"].clone(), data["label"].clone()
    modules = [trainer.learner.networks["classifier"].fresh() for _ in range(stack)]
    parameters, buffers = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    pad, size = trainer.env.augment_pad, (stack, min(config.batch_size, len(images)))

    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        cast = {name: parameter.to(dtype) for name, parameter in parameters.items()}
        return F.cross_entropy(functional_call(base, (cast, buffers), (x.to(dtype),)).float(), y)

    gradients = vmap(grad(loss), randomness="different")

    def update() -> None:
        index = torch.randint(len(images), size, generator=generator, device=device)  # [S, B]
        x = images[index].flatten(0, 1)
        x = normalize(crop_and_flip(x, pad, generator) if pad else x).unflatten(0, size)  # [S, B, C, H, W]
        detached = {name: parameter.detach() for name, parameter in parameters.items()}
        found = gradients(detached, buffers, x, labels[index])
        squares = torch.stack([g.flatten(1).square().sum(1) for g in found.values()])  # [parameters, S]
        factor = (config.clip / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1) if config.clip else torch.ones(stack)
        for name, parameter in parameters.items():
            parameter.grad = found[name] * factor.to(device).view(-1, *[1] * (parameter.ndim - 1))
        optimizer.step()

    return update
