"""Interventions in Lightning's ``Trainer``."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.integrations.callback_schedule import Draw, Packing, Schedule, collate, try_builder
from plastibench.interventions.attach import Attached, attach
from plastibench.interventions.base import Intervention, overrides
from plastibench.interventions.intervention_log import LogTarget
from plastibench.nn.network import Network, as_evaluated
from plastibench.utils.seeding import generator as named_generator

_PART = "part of a batch, whose tensors must have one entry for each sample; other values are not divided"


class PlasticityCallback(Callback):
    """``Trainer(callbacks=[PlasticityCallback("rnr", loss, every=1000)])``.

    The callback prepares the module before a checkpoint is loaded. It intervenes after the training batch with a
    scheduled optimizer step, before checkpoints are saved. A penalty is added to the loss that ``training_step``
    returns. The state is saved in Lightning's checkpoints.

    - Only automatic optimization with one optimizer is supported.
    - Several processes train with DistributedDataParallel (``strategy="ddp"``). All processes draw the same samples for
      an intervention, or gather what ``draw`` returns in each. Other strategies raise ``UserError``.
    - Lightning validates the module itself. If a method keeps an averaged copy (``callback.attached.evaluated``),
      evaluate it yourself.

    Attributes:
        attached: The attached intervention, or None before ``setup``.
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
        log: LogTarget = None,
    ) -> None:
        """Configure the intervention and its schedule.

        Args:
            intervention: A registered name, or an instance; each module gets a copy of it.
            loss: ``loss(module, batch)``, the mean training loss of a batch from the data loader. Do not pass
                ``training_step``: it logs, may augment, and only works inside Lightning's loop.
            every: Intervene after every ``every`` optimizer steps; 0: never.
            steps: Intervene after these optimizer steps.
            epochs: Intervene at the end of these epochs, counted from 1.
            size: Number of training samples in the batch for an intervention, see
                :func:`~plastibench.integrations.callback_schedule.collate`.
            draw: A function that returns this batch instead.
            fresh: Builds a newly initialized module. By default, each layer's ``reset_parameters()`` is used.
            options: Options of a named intervention.
            seed: Seed of all randomness of the intervention.
            log: Where to write what each intervention did, as in :func:`plastibench.attach`; None: nowhere.
        """
        self.intervention, self.loss, self.options = intervention, loss, dict(options or {})
        self.schedule = Schedule(every, steps, epochs)
        self.size, self.draw, self.fresh, self.seed = size, draw, fresh, seed
        self.log_target = log
        self.attached: Attached | None = None
        self._loaded = False
        self._packing = Packing()
        self._step = 0  # global_step after the previous batch

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint; it differs between interventions."""
        name = self.intervention if isinstance(self.intervention, str) else type(self.intervention).__name__
        return str(self._generate_state_key(intervention=name))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the intervention to the module, on its device and before the optimizer is created."""
        if stage != "fit" or (self.attached is not None and self.attached.network.module is pl_module):
            return
        if not pl_module.automatic_optimization:
            raise UserError("PlasticityCallback supports only automatic optimization")
        if trainer.world_size > 1 and type(trainer.strategy) is not DDPStrategy:
            name = type(trainer.strategy).__name__
            raise UserError(f"PlasticityCallback supports several devices only with strategy='ddp', not with {name}")
        trainer.precision_plugin.convert_module(pl_module).to(trainer.strategy.root_device)
        loss, unpack = self.loss, self._packing.unpack
        network = Network(
            pl_module,
            None,
            lambda module, batch: loss(module, unpack(batch)),
            fresh=self.fresh,
            generator=named_generator(self.seed, "intervention"),
        )
        self.attached = attach(copy.deepcopy(self.intervention), network, log=self.log_target, **self.options)
        load = _after(self._load, pl_module.on_load_checkpoint)
        pl_module.on_load_checkpoint = load  # type: ignore[assignment, method-assign]
        if overrides(self.attached.intervention, "evaluated"):
            print("plastibench: Lightning validates the trained weights, not the averaged copy", file=sys.stderr)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the optimizer of this fit, and add the penalty to the loss of ``training_step``."""
        assert self.attached is not None
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"PlasticityCallback supports one optimizer; configure_optimizers returned {len(trainer.optimizers)}"
            )
        self.attached.optimizer = trainer.optimizers[0]
        if overrides(self.attached.intervention, "penalty"):
            step = _penalised(pl_module.training_step, self.attached, self._packing)
            pl_module.training_step = step  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the step at which this fit starts, and test the loss on a few samples and the builder.

        Raises:
            UserError: The data does not support access by index, or the loss or the builder fails.
        """
        self._step = trainer.global_step
        assert self.attached is not None
        network, planned = self.attached.network, self.schedule.every or self.schedule.steps or self.schedule.epochs
        if planned and self.draw is None:
            batch = self._drawn(trainer, 3, named_generator(self.seed, "trial"))
            for part, what in ((batch, "samples of the training data"), (batch[:2], _PART)):
                try:
                    with as_evaluated(network.module), torch.no_grad():
                        network.loss(network.module, part)
                except UserError:
                    raise
                except Exception as error:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    raise UserError(f"PlasticityCallback: loss(module, batch) fails on {what} ({reason})") from error
        if self.fresh is not None:
            try_builder(network)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Intervene if the schedule says so."""
        before, self._step = self._step, trainer.global_step
        epoch = trainer.current_epoch + 1 if trainer.is_last_batch else 0
        if self._step > before and self.schedule.due(
            self._step, epoch
        ):  # it does not advance while gradients accumulate
            assert self.attached is not None
            drawn = self._drawn(trainer, self.size, self.attached.network.generator)
            self.attached.intervene(drawn, gather=self.draw is not None)

    def _drawn(self, trainer: Trainer, size: int, generator: torch.Generator) -> TensorDictBase:
        """Draw a batch, cast as Lightning casts training batches."""
        drawn = self.draw() if self.draw else collate(trainer.train_dataloader, size, generator)
        assert self.attached is not None
        return self._packing.pack(trainer.precision_plugin.convert_input(drawn)).to(self.attached.network.device)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the module's own methods."""
        for name in ("training_step", "on_load_checkpoint"):
            if hasattr(pl_module.__dict__.get(name), "__wrapped__"):
                delattr(pl_module, name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the module's own methods."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """The intervention's state."""
        return {} if self.attached is None else self.attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`, unless ``_load`` has done so before the module's weights were loaded."""
        if self.attached is not None and state_dict and not self._loaded:
            self.attached.load_state_dict(state_dict)
        self._loaded = False

    def _load(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state before the module's weights are loaded: it may rebuild the module."""
        if state := checkpoint.get("callbacks", {}).get(self.state_key):
            self.load_state_dict(state)
            self._loaded = True


def _after(first: Callable[[Any], None], then: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(then)
    def both(argument: Any) -> None:
        first(argument)
        then(argument)

    return both


def _penalised(step: Callable[..., Any], attached: Attached, packing: Packing) -> Callable[..., Any]:
    @functools.wraps(step)
    def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = step(batch, *args, **kwargs)
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + attached.penalty(packing.pack(batch))}
        return None if output is None else output + attached.penalty(packing.pack(batch))

    return training_step
