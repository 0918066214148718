"""The supervised agent: a network trained with cross-entropy, by default with a new optimizer for every task."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.classifier_options import ClassifierOptions
from plastibench.agents.images import Normalize, crop_and_flip
from plastibench.agents.optimizers import grouping, make_optimizer
from plastibench.config.errors import RunError, UserError
from plastibench.envs.task_stream import TaskStream
from plastibench.nn.network import Network, eval_mode, seeded
from plastibench.utils import distributed
from plastibench.utils.seeding import derive, generator

_EVALUATION_BATCH = 1024
_NEVER = -1e9  # a logit whose class has probability 0 in every precision


class Classifier:
    """Trains an image classifier on a task stream.

    Attributes:
        config: The options.
        networks: The networks by role; the only role is ``classifier``.
        batch_size: Samples per update.
        masked_classes: True for classes that do not exist yet, bool [K], or None; the loss ignores them.
        normalize: Converts images to the network's inputs.
    """

    def __init__(self, config: ClassifierOptions, env: TaskStream, seed: int, device: torch.device) -> None:
        self.config = config
        self.batch_size = config.batch_size
        self.masked_classes: Tensor | None = None
        self._device = device
        self._pad = env.augment_pad
        self._augmentation = generator(seed, "augmentation", device)
        self.normalize = Normalize(env.dataset.mean, env.dataset.std, device)
        build = functools.partial(config.module, env.image_shape, env.num_classes)
        with seeded(derive(seed, "init")):
            module = build().to(device)
        _check_input_shape(module, env.image_shape, device)
        self._network = Network(
            module,
            self._new_optimizer(module),
            self._loss,
            fresh=build,
            role="classifier",
            clip=config.clip,
            generator=generator(seed, "intervention"),
            grouping=grouping(config),
        )
        self.networks = {"classifier": self._network}
        self._forward: Callable[[Tensor], Tensor] = module
        if config.compile != "no":
            self._forward = torch.compile(module, mode=None if config.compile == "default" else config.compile)
        self._update = 0  # within the task
        self._updates = 1
        # Sums of loss and of gradient norm before clipping, since the last pop_averages().
        self._sums = torch.zeros(2, device=device)
        self._summed = 0

    def begin_task(self, updates: int) -> None:
        """Start a task of ``updates`` updates: a new learning-rate schedule and, unless disabled, a new optimizer."""
        if self.config.restart_optimizer is not False:
            self._network.optimizer = self._new_optimizer(self._network.module)
        self._update, self._updates = 0, updates

    def update(self, batch: TensorDictBase) -> None:
        """Make one optimizer step on ``image``, uint8 [B, C, H, W], and ``label`` [B], without a device sync.

        All processes get the same batch, and each computes a part of it.
        """
        images, weight = self.prepare_update(batch["image"]), None
        if distributed.world_size() > 1:  # every process draws the augmentation of all images
            rows, weight = distributed.shard(len(images))
            images, batch = images[rows], batch[rows]
        with self._autocast():
            loss = F.cross_entropy(mask_logits(self._logits(images), self.masked_classes), batch["label"])
        norm = self._network.update(loss, batch, weight)
        loss = loss.detach()
        if weight is not None:
            distributed.all_reduce_sum([loss.mul_(weight)])
        self.count_update(torch.stack([loss, norm]))

    def prepare_update(self, images: Tensor) -> Tensor:
        """Set the learning rate of the next update, and augment its images, uint8 [B, C, H, W]."""
        assert self._network.optimizer is not None
        for group in self._network.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        return crop_and_flip(images, self._pad, self._augmentation) if self._pad else images

    def count_update(self, loss_and_norm: Tensor) -> None:
        """Count an update, and add its loss and gradient norm, [2], to the averages."""
        self._sums += loss_and_norm
        self._summed += 1
        self._update += 1

    def pop_averages(self) -> dict[str, float]:
        """Mean loss and gradient norm of the updates since the last call; synchronizes with the device once."""
        if not self._summed:
            return {}
        loss, norm = (self._sums / self._summed).tolist()
        self._sums.zero_()
        self._summed = 0
        return {"loss": loss, "gradient-norm": norm}

    @torch.no_grad()
    def logits(
        self, images: Tensor, module: nn.Module | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Compute logits in eval mode: uint8 [N, C, H, W] -> float32 [N, K].

        Args:
            images: Images on any device.
            module: Evaluate this module, such as an averaged copy, instead of the trained one.
            progress: Called with the number of images done and the total, if there are several batches.
        """
        module = module if module is not None else self._network.module
        parts: list[Tensor] = []
        with eval_mode(module), self._autocast():
            for part in images.split(_EVALUATION_BATCH):
                if parts and progress is not None:
                    progress(len(parts) * _EVALUATION_BATCH, len(images))
                parts.append(module(self.normalize(part.to(self._device))).float())
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        assert self._network.optimizer is not None
        return {
            "module": self._network.module.state_dict(),
            "optimizer": self._network.optimizer.state_dict(),
            "task": [self._update, self._updates, self._summed],
            "masked_classes": self.masked_classes,
            "sums": self._sums,
            "augmentation": self._augmentation.get_state(),
            "intervention": self._network.generator.get_state(),
        }

    def extra_state(self) -> dict[str, Any]:
        """State that the training loss needs besides the weights."""
        return {"masked_classes": self.masked_classes}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`extra_state`."""
        masked = state.get("masked_classes", state.get("closed"))  # "closed" in files of version 0.1
        self.masked_classes = None if masked is None else masked.to(self._device)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        self._network.module.load_state_dict(state["module"])
        self._network.optimizer = self._new_optimizer(self._network.module)
        assert self._network.optimizer is not None
        self._network.optimizer.load_state_dict(state["optimizer"])
        self._update, self._updates, self._summed = state["task"]
        self._sums.copy_(state["sums"])
        self.load_extra_state(state)
        self._augmentation.set_state(state["augmentation"].cpu())
        self._network.generator.set_state(state["intervention"].cpu())

    def _logits(self, images: Tensor) -> Tensor:
        try:
            return self._forward(self.normalize(images))
        except ValueError as error:
            if len(images) > 1:
                raise
            raise RunError(
                f"the last batch of an epoch has only one image ({error}); choose another --agent.batch-size"
            ) from error

    def _loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        """The training loss without augmentation, which interventions use for their scores."""
        return F.cross_entropy(mask_logits(module(self.normalize(batch["image"])), self.masked_classes), batch["label"])

    def _new_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        return make_optimizer(config, module, "adamw", lr=config.lr, weight_decay=config.weight_decay)

    def _learning_rate(self) -> float:
        """Linear warm-up from 0, then cosine decay to 0 or constant, within the task (the paper's Table 1)."""
        config = self.config
        warmup = config.warmup * self._updates
        if self._update < warmup and warmup >= 1:  # otherwise a task of a single update would learn nothing
            return config.lr * self._update / warmup
        if config.schedule == "constant":
            return config.lr
        progress = (self._update - warmup) / max(1.0, self._updates - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


@torch.no_grad()
def _check_input_shape(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
    """Run a forward pass on two images.

    Raises:
        UserError: The network does not accept images of this shape.
    """
    try:
        with eval_mode(module):
            module(torch.zeros(2, *shape, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"agent: {type(module).__name__} does not accept images of shape {list(shape)} ({reason})"
        ) from error


def mask_logits(logits: Tensor, masked_classes: Tensor | None) -> Tensor:
    """Give masked classes, bool [K], probability 0 in logits [N, K]; logits and divergences stay finite."""
    return logits if masked_classes is None else logits.masked_fill(masked_classes, _NEVER)
