"""Interventions in the Trainer of Lightning."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.integrations.shared import Draw, Schedule, collate
from plastibench.interventions.attach import Attached, attach
from plastibench.interventions.base import Intervention, overrides
from plastibench.nn.network import Network, as_batch


class PlasticityCallback(Callback):
    """``Trainer(callbacks=[PlasticityCallback("rnr", loss, every=1000)])``.

    The module is prepared before a checkpoint is loaded, and worked on after the training batch whose optimizer step
    the schedule names, before checkpoints are saved. A penalty is added to what ``training_step`` returns. State is
    part of Lightning's checkpoints.

    - Automatic optimization with one optimizer, on one device; anything else is refused.
    - Validation sees the module itself. Evaluate a method's slow copy, ``callback.attached.evaluated``, yourself.

    Attributes:
        attached: The intervention at work, once there is a module.
    """

    def __init__(
        self,
        intervention: str | Intervention,
        loss: Callable[[Any, Any], Tensor],
        *,
        every: int = 0,
        steps: Sequence[int] = (),
        epochs: Sequence[int] = (),
        size: int = 512,
        draw: Draw | None = None,
        fresh: Callable[[], nn.Module] | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Say what to do when.

        Args:
            intervention: A registered name, or an instance, of which each module gets a copy.
            loss: ``loss(module, batch)``: mean training loss of a batch as the data loader makes it. Not
                ``training_step`` itself, which logs, may augment, and runs in its loop alone.
            every: Intervene after every so many optimizer steps.
            steps: Intervene after these optimizer steps.
            epochs: Intervene at the end of these epochs, counted from 1.
            size: Samples of the training data that an intervention sees
                (:func:`~plastibench.integrations.shared.collate` says how they are drawn).
            draw: Returns the batch instead.
            fresh: Builds the module anew; without it, PyTorch's defaults are drawn.
            options: Options of a named intervention.
            seed: Of all randomness of the intervention.
        """
        self.intervention, self.loss, self.options = intervention, loss, dict(options or {})
        self.schedule = Schedule(every, steps, epochs)
        self.size, self.draw, self.fresh, self.seed = size, draw, fresh, seed
        self.attached: Attached | None = None
        self._loaded = False
        self._step = 0  # after the batch before

    @property
    def state_key(self) -> str:
        """Tells several callbacks of this class apart in a checkpoint."""
        named = self.intervention if isinstance(self.intervention, str) else type(self.intervention).__name__
        return str(self._generate_state_key(intervention=named))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the module, on its device, while it has no optimizer yet."""
        if stage != "fit" or (self.attached is not None and self.attached.network.module is pl_module):
            return
        if trainer.world_size > 1 or not pl_module.automatic_optimization:
            raise UserError("PlasticityCallback: one device and automatic optimization only")
        pl_module.to(trainer.strategy.root_device)
        loss = self.loss
        network = Network(
            pl_module,
            None,
            lambda module, batch: loss(module, unpack(batch)),
            fresh=self.fresh,
            generator=torch.Generator().manual_seed(self.seed),
        )
        self.attached = attach(copy.deepcopy(self.intervention), network, **self.options)
        load = _after(self._load, pl_module.on_load_checkpoint)
        pl_module.on_load_checkpoint = load  # type: ignore[assignment, method-assign]
        if overrides(self.attached.intervention, "evaluated"):
            print("plastibench: Lightning validates the trained weights, not their slow copy", file=sys.stderr)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the optimizer of this fit, and add the penalty to the loss."""
        assert self.attached is not None
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"PlasticityCallback: one optimizer only; configure_optimizers made {len(trainer.optimizers)}"
            )
        self.attached.optimizer = trainer.optimizers[0]
        if overrides(self.attached.intervention, "penalty"):
            step = _penalised(pl_module.training_step, self.attached)
            pl_module.training_step = step  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know the step at which this fit begins."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Intervene where it is due."""
        before, self._step = self._step, trainer.global_step
        epoch = trainer.current_epoch + 1 if trainer.is_last_batch else 0
        if self._step > before and self.schedule.due(self._step, epoch):  # it stands still while batches accumulate
            assert self.attached is not None
            network = self.attached.network
            drawn = self.draw() if self.draw else collate(trainer.train_dataloader, self.size, network.generator)
            self.attached.intervene(pack(drawn).to(network.device))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own methods back."""
        for name in ("training_step", "on_load_checkpoint"):
            if hasattr(pl_module.__dict__.get(name), "__wrapped__"):
                delattr(pl_module, name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own methods back."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """The intervention's state."""
        return {} if self.attached is None else self.attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, unless that happened before the module's own state was loaded."""
        if self.attached is not None and state_dict and not self._loaded:
            self.attached.load_state_dict(state_dict)
        self._loaded = False

    def _load(self, checkpoint: dict[str, Any]) -> None:
        """Take the state from a whole checkpoint: it may say how the module has been rebuilt since ``setup``."""
        if state := checkpoint.get("callbacks", {}).get(self.state_key):
            self.load_state_dict(state)
            self._loaded = True


def _after(first: Callable[[Any], None], then: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(then)
    def both(argument: Any) -> None:
        first(argument)
        then(argument)

    return both


def _penalised(step: Callable[..., Any], attached: Attached) -> Callable[..., Any]:
    @functools.wraps(step)
    def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = step(batch, *args, **kwargs)
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + attached.penalty(pack(batch))}
        return None if output is None else output + attached.penalty(pack(batch))

    return training_step


def pack(batch: Any) -> TensorDictBase:
    """A dict of tensors as it is, a list or tuple of tensors under ``"0"``, ``"1"``, …"""
    if isinstance(batch, Sequence):
        return TensorDict({str(index): value for index, value in enumerate(batch)}, batch_size=[len(batch[0])])
    return as_batch(batch)


def unpack(batch: TensorDictBase) -> Any:
    """The reverse of :func:`pack`."""
    values = dict(batch.items())
    return tuple(values[str(i)] for i in range(len(values))) if "0" in values else values
