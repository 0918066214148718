"""A plain PyTorch loop that does the same work as plastibench."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from plastibench.agents.images import crop_and_flip
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.task_buffer import all_samples


def plain_loop(trainer: SupervisedTrainer) -> Callable[[], None]:
    """Create a function that makes one update in plain, uncompiled PyTorch.

    Data on the device, augmentation, normalization, forward, backward, clipping and fused AdamW are as in plastibench.
    It has no replay buffer, hooks, schedule or metrics.

    Args:
        trainer: Supplies the data, the network and the options.
    """
    config, device = trainer.agent.config, trainer.device
    data = all_samples(trainer.buffer)
    images, labels = data["image"].clone(), data["label"].clone()
    model = trainer.learner.networks["classifier"].fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    mean = torch.tensor(trainer.env.dataset.mean, device=device)[:, None, None]
    std = torch.tensor(trainer.env.dataset.std, device=device)[:, None, None]
    generator = torch.Generator(device).manual_seed(0)
    pad, batch_size = trainer.env.augment_pad, config.batch_size
    batches: list[torch.Tensor] = []

    def update() -> None:
        if not batches:
            batches.extend(torch.randperm(len(images), device=device).split(batch_size))
        index = batches.pop(0)
        x = images[index]
        if pad:
            x = crop_and_flip(x, pad, generator)
        x = (x.float() / 255 - mean) / std
        for group in optimizer.param_groups:
            group["lr"] = config.lr
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = F.cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
        optimizer.step()

    return update
