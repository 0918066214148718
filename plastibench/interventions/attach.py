"""An intervention in a training loop of one's own: what plastibench's runner does, as a few calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.nn.network import Network, as_batch

Batch: TypeAlias = TensorDictBase | Mapping[str, Tensor]


def attach(intervention: str | Intervention, network: Network, **options: Any) -> Attached:
    """Prepare the network, and follow its optimizer from now on.

    Args:
        intervention: A registered name, or several as ``l2-init+rnr``; or an instance that serves no other network.
        network: What to keep trainable. Its architecture may change here, so attach before loading a state.
        options: Of a named intervention; those of a combination as ``l2_init__strength=0.001``.

    Raises:
        UserError: An unknown name, or an option that does not fit.
    """
    if isinstance(intervention, str):
        entry = interventions[intervention]
        intervention = build(entry.load(), {**entry.defaults, **options}, f"intervention {intervention}")
    elif options:
        raise UserError(f"attach: {type(intervention).__name__} has its options already; give them with a name only")
    assert isinstance(intervention, Intervention)
    intervention.prepare(network)
    return Attached(intervention, network)


class Attached:
    """An intervention at work on one network; made by :func:`attach`.

    Every step of the optimizer calls ``before_update`` and ``after_update``, also where a learning-rate schedule or a
    ``GradScaler`` stands in between, or gradients come from a closure. Gradients are seen unscaled: a fused optimizer
    that would unscale them itself finds that done. Steps that the scaler skips are none (after a fused optimizer
    finding this out waits for the device). What runs between backward pass and step, as clipping, has been done.

    Attributes:
        intervention: The intervention.
        network: Its network.
        steps: Optimizer steps seen.
        report: What the latest call of :meth:`intervene` did.
    """

    def __init__(self, intervention: Intervention, network: Network) -> None:
        self.intervention, self.network = intervention, network
        self.steps = 0
        self.report: Report | None = None
        self._before = overrides(intervention, "before_update")
        self._after = overrides(intervention, "after_update")
        self._awaits_penalty = overrides(intervention, "penalty")
        self._acted_at = 0
        self._every = 0
        self._draw: Callable[[], Batch] | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.optimizer = network.optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The network's optimizer; assign the new one where a task begins with one."""
        return self.network.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.detach()
        while hasattr(optimizer, "optimizer"):  # Accelerate and Lightning wrap it in something that takes no hooks
            optimizer = optimizer.optimizer  # type: ignore[union-attr]
        self.network.optimizer = None
        if optimizer is not None:
            self.network.follow(optimizer)
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def schedule(self, every: int, draw: Callable[[], Batch]) -> None:
        """Intervene by itself after every so many optimizer steps, on the batch that ``draw()`` then returns."""
        if every < 1:
            raise UserError(f"schedule: every is {every}; it must be at least 1")
        self._every, self._draw = every, draw

    def penalty(self, batch: Batch) -> Tensor | float:
        """What to add to the loss of this batch, after its forward pass; 0 where the intervention asks for nothing."""
        self._awaits_penalty = False
        found = self.intervention.penalty(self.network, as_batch(batch))
        return 0.0 if found is None else found

    def intervene(self, batch: Batch) -> Report:
        """Act: at a task switch, or every so many updates.

        Args:
            batch: A large representative batch of the data to come, with all that the network's loss needs.
        """
        if self.steps == self._acted_at and (self._before or self._after):
            print(
                "plastibench: no optimizer step was seen since the last intervention; "
                "if you made a new optimizer, assign it: attached.optimizer = optimizer",
                file=sys.stderr,
            )
        self._acted_at = self.steps
        started = time.perf_counter()
        self.report = self.intervention.intervene(self.network, as_batch(batch))
        self.report.seconds = time.perf_counter() - started
        return self.report

    @property
    def evaluated(self) -> nn.Module:
        """The module to evaluate: the network's own, or a slow copy of it."""
        return self.intervention.evaluated(self.network)

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the module's and the optimizer's state; safe for ``weights_only=True``."""
        generator = self.network.generator.get_state()
        counts = {"steps": self.steps, "acted-at": self._acted_at}
        return {"intervention": self.intervention.state_dict(), "generator": generator, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; before module and optimizer, for that may rebuild the module."""
        self.intervention.load_state_dict(state["intervention"])
        self.network.generator.set_state(state["generator"].cpu())
        self.steps, self._acted_at = state["steps"], state.get("acted-at", -1)

    def detach(self) -> None:
        """Follow the optimizer no more. What was done to the network stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer itself
        if closure is None:
            self._tell(optimizer)
            return None

        def then_tell() -> Any:  # gradients are there only once the closure has run
            loss = closure()
            self._tell(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": then_tell}

    def _tell(self, optimizer: torch.optim.Optimizer) -> None:
        if self._awaits_penalty:
            name = type(self.intervention).__name__
            raise UserError(f"{name} sees batches through its penalty: add attached.penalty(batch) to every loss")
        if not (self._before or self._after) or _skipped(optimizer):
            return
        if (scale := getattr(optimizer, "grad_scale", None)) is not None:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        if self._before:
            self.intervention.before_update(self.network)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _skipped(optimizer):
            return
        self.steps += 1
        if self._after:
            self.intervention.after_update(self.network)
        if self._draw is not None and self.steps % self._every == 0:
            self.intervene(self._draw())


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer, which makes no step then, that gradients are not finite."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
