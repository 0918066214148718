"""The supervised agent: one network trained with cross-entropy, a new optimizer at every task."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.images import Normalise, crop_and_flip
from plastibench.config.errors import RunError, UserError
from plastibench.nn.network import Network, eval_mode, seeded
from plastibench.utils.seeding import derive, generator

if TYPE_CHECKING:
    from plastibench.agents.classifier_config import ClassifierConfig
    from plastibench.envs.task_stream import TaskStream

_EVALUATION_BATCH = 1024
_NEVER = -1e9  # a logit whose class has probability 0 in every precision


class Classifier:
    """A classifier on a task stream.

    Attributes:
        networks: Its networks by role; here ``classifier`` alone.
        batch_size: Samples per update.
        label: Precision of the arithmetic, for the result.
        closed: True for classes that do not exist yet, bool [K], or none; they take no part in the loss.
    """

    def __init__(self, config: ClassifierConfig, env: TaskStream, seed: int, device: torch.device) -> None:
        self.config = config
        self.batch_size = config.batch_size
        self.label = config.precision
        self.closed: Tensor | None = None
        self._device = device
        self._pad = env.augment_pad
        self._augmentation = generator(seed, "augmentation", device)
        self._normalise = Normalise(env.dataset.mean, env.dataset.std, device)
        build = functools.partial(config.module, env.image_shape, env.num_classes)
        with seeded(derive(seed, "init")):
            module = build().to(device)
        _see_that_it_runs(module, env.image_shape, device)
        self._network = Network(
            module,
            self._new_optimizer(module),
            self._loss,
            fresh=build,
            role="classifier",
            generator=generator(seed, "intervention"),
        )
        self.networks = {"classifier": self._network}
        self._forward: Callable[[Tensor], Tensor] = module
        if config.compile != "no":
            self._forward = torch.compile(module, mode=None if config.compile == "default" else config.compile)
        self._update = 0  # of this task
        self._updates = 1
        self._sums = torch.zeros(2, device=device)  # loss and gradient norm before clipping, since the last averages
        self._summed = 0

    def begin_task(self, updates: int) -> None:
        """Start a task of so many updates with a new optimizer and learning-rate schedule."""
        self._network.optimizer = self._new_optimizer(self._network.module)
        self._update, self._updates = 0, updates

    def update(self, batch: TensorDictBase) -> None:
        """One optimizer step on ``image`` uint8 [B, C, H, W] and ``label`` [B]; nothing waits for the device."""
        network, optimizer = self._network, self._network.optimizer
        assert optimizer is not None
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate()
        images = batch["image"]
        if self._pad:
            images = crop_and_flip(images, self._pad, self._augmentation)
        with self._autocast():
            loss = F.cross_entropy(without(self._logits(images), self.closed), batch["label"])
        total = loss
        for penalty in network.penalties:
            if (extra := penalty(network, batch)) is not None:
                total = total + extra
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        limit = self.config.clip or math.inf
        norm = nn.utils.clip_grad_norm_(network.module.parameters(), limit)
        for tell in network.before_steps:
            tell(network)
        optimizer.step()
        self._sums[0] += loss.detach()
        self._sums[1] += norm
        self._summed += 1
        self._update += 1

    def pop_averages(self) -> dict[str, float]:
        """Mean loss and gradient norm of the updates since the last call; waits for the device once."""
        if not self._summed:
            return {}
        loss, norm = (self._sums / self._summed).tolist()
        self._sums.zero_()
        self._summed = 0
        return {"loss": loss, "gradient-norm": norm}

    @torch.no_grad()
    def logits(self, images: Tensor, module: nn.Module | None = None) -> Tensor:
        """Outputs in eval mode: uint8 [N, C, H, W] -> float32 [N, K].

        Args:
            images: On any device.
            module: What to evaluate instead of the network itself (a slow copy).
        """
        module = module if module is not None else self._network.module
        with eval_mode(module), self._autocast():
            parts = [module(self._normalise(part.to(self._device))).float() for part in images.split(_EVALUATION_BATCH)]
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        assert self._network.optimizer is not None
        return {
            "module": self._network.module.state_dict(),
            "optimizer": self._network.optimizer.state_dict(),
            "task": [self._update, self._updates, self._summed],
            "closed": self.closed,
            "sums": self._sums,
            "augmentation": self._augmentation.get_state(),
            "intervention": self._network.generator.get_state(),
        }

    def extra_state(self) -> dict[str, Any]:
        """What the loss of the finished network needs beside it."""
        return {"closed": self.closed}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""
        closed = state.get("closed")
        self.closed = None if closed is None else closed.to(self._device)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._network.module.load_state_dict(state["module"])
        self.begin_task(1)
        assert self._network.optimizer is not None
        self._network.optimizer.load_state_dict(state["optimizer"])
        self._update, self._updates, self._summed = state["task"]
        self._sums.copy_(state["sums"])
        self.load_extra_state(state)
        self._augmentation.set_state(state["augmentation"].cpu())
        self._network.generator.set_state(state["intervention"].cpu())

    def _logits(self, images: Tensor) -> Tensor:
        try:
            return self._forward(self._normalise(images))
        except ValueError as error:
            if len(images) > 1:
                raise
            raise RunError(f"a last batch of one image: {error}; take another --agent.batch-size") from error

    def _loss(self, module: nn.Module, batch: TensorDictBase) -> Tensor:
        """The training loss without augmentation: what interventions score with."""
        return F.cross_entropy(without(module(self._normalise(batch["image"])), self.closed), batch["label"])

    def _new_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        trained = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)

    def _learning_rate(self) -> float:
        """Linear from 0 over the warm-up, then cosine to 0 or constant, within the task (Table 1)."""
        config = self.config
        warmup = config.warmup * self._updates
        if self._update < warmup and warmup >= 1:  # else the one update of a short task would learn nothing
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
def _see_that_it_runs(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
    """Let images through, two of them.

    Raises:
        UserError: The network does not take images of that size.
    """
    try:
        with eval_mode(module):
            module(torch.zeros(2, *shape, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"agent: {type(module).__name__} does not take images of {list(shape)} ({reason})") from error


def without(logits: Tensor, closed: Tensor | None) -> Tensor:
    """Logits [N, K] in which closed classes, bool [K], have probability 0; finite, so that divergences stay so."""
    return logits if closed is None else logits.masked_fill(closed, _NEVER)
