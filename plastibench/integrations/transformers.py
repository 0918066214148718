"""Interventions in the ``Trainer`` of Hugging Face transformers."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plastibench.config.errors import UserError
from plastibench.integrations.callback_schedule import Draw, Schedule, collate, try_builder
from plastibench.interventions.attach import Attached, attach
from plastibench.interventions.base import Intervention, overrides
from plastibench.interventions.intervention_log import LogTarget
from plastibench.nn.branches import names_in_branches
from plastibench.nn.network import Network, as_batch
from plastibench.utils.seeding import generator as named_generator

_FILE = "plastibench.pt"


class PlasticityCallback(TrainerCallback):
    """``Trainer(..., callbacks=[PlasticityCallback("rnr", every=1000)])``.

    The callback prepares the model when the Trainer is created; pass it to the Trainer's constructor, so that this
    happens before a checkpoint is loaded. It intervenes right after a scheduled optimizer step, before logging,
    evaluation and saving. A penalty is added to the loss that the model returns in train mode, once per accumulated
    update. The state is saved in each checkpoint as ``plastibench.pt``.

    - Several processes (``torchrun``) train with DistributedDataParallel. All processes draw the same samples for an
      intervention, or gather what ``draw`` returns in each. FSDP, DeepSpeed and DataParallel raise ``UserError``.
    - Reinitialized weights come from a new model of the same class and config, or from each layer's
      ``reset_parameters()`` if the model has no config. They are random even if the model was pretrained.
    - A model with branches (``plasticity-injection``) cannot be resumed, because the Trainer loads the weights and
      creates the optimizer before it notifies callbacks. Resuming from such a checkpoint raises ``UserError``.
    - The Trainer evaluates the model itself. If a method keeps an averaged copy (``callback.attached.evaluated``),
      evaluate it yourself.

    Attributes:
        attached: The attached intervention, or None before there is a model.
    """

    def __init__(
        self,
        intervention: str | Intervention,
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
            intervention: A registered name, or an instance; each model gets a copy of it.
            every: Intervene after every ``every`` optimizer steps; 0: never.
            steps: Intervene after these optimizer steps.
            epochs: Intervene at the end of these epochs, counted from 1.
            size: Number of training samples in the batch for an intervention, see
                :func:`~plastibench.integrations.callback_schedule.collate`.
            draw: A function that returns this batch instead.
            fresh: Builds a newly initialized model; tested once at the start. By default, a model of the same class and
                config is built. If that fails (PEFT models, wrappers), each layer's ``reset_parameters()`` is used.
            options: Options of a named intervention.
            seed: Seed of all randomness of the intervention.
            log: Where to write what each intervention did, as in :func:`plastibench.attach`; None: nowhere.
        """
        self.intervention, self.options = intervention, dict(options or {})
        self.schedule = Schedule(every, steps, epochs)
        self.size, self.draw, self.fresh, self.seed = size, draw, fresh, seed
        self.log_target = log
        self.attached: Attached | None = None
        self._penalty: torch.utils.hooks.RemovableHandle | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Attach the intervention to the model before the optimizer is created."""
        self._attach(args, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook into the optimizer, and restore the intervention's state when training resumes from a checkpoint."""
        if self.attached is None or self.attached.network.module is not kwargs["model"]:
            if state.global_step:
                raise UserError("PlasticityCallback: to resume, pass both the model and the callback to Trainer(…)")
            self._attach(args, kwargs["model"], kwargs["optimizer"])
        assert self.attached is not None
        self.attached.optimizer = kwargs["optimizer"]
        if state.global_step:
            given = args.resume_from_checkpoint
            folder = Path(given) if isinstance(given, str) and Path(given).is_dir() else _folder(args, state)
            if not (folder / _FILE).is_file():
                raise UserError(
                    f"PlasticityCallback: {folder} has no {_FILE}; resume with the output_dir of the first run"
                )
            self.attached.load_state_dict(torch.load(folder / _FILE, map_location="cpu", weights_only=True))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Intervene if the schedule says so."""
        epoch = state.epoch or 0.0
        if self.schedule.due(state.global_step, int(epoch) if epoch == int(epoch) else 0):
            assert self.attached is not None
            network = self.attached.network
            batch = self.draw() if self.draw else collate(kwargs["train_dataloader"], self.size, network.generator)
            self.attached.intervene(as_batch(batch).to(network.device), gather=self.draw is not None)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the intervention's state in the checkpoint folder."""
        if self.attached is not None and args.should_save and _folder(args, state).is_dir():
            torch.save(self.attached.state_dict(), _folder(args, state) / _FILE)

    def _attach(
        self, args: TrainingArguments, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        used = {
            "FSDP": args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true",
            "DeepSpeed": args.deepspeed,
            "DataParallel": args.n_gpu > 1,
        }
        if other := next((name for name, value in used.items() if value), ""):
            raise UserError(
                f"PlasticityCallback does not support {other} in the Trainer; use torchrun with one process per device"
            )
        if self._penalty is not None:
            self._penalty.remove()
        config = getattr(model, "config", None)
        generator = named_generator(self.seed, "intervention")
        fresh = self.fresh or ((lambda: type(model)(copy.deepcopy(config))) if config is not None else None)
        network = Network(model, optimizer, _loss, fresh=fresh, generator=generator)
        try:
            try_builder(network)
        except UserError as error:
            if self.fresh is not None:
                raise
            print(f"plastibench: reinitializing by reset_parameters(); pass fresh= instead. {error}", file=sys.stderr)
            network = Network(model, optimizer, _loss, generator=generator)
        self.attached = attach(copy.deepcopy(self.intervention), network, log=self.log_target, **self.options)
        model.register_load_state_dict_pre_hook(_refuses_other_branches)
        if overrides(self.attached.intervention, "penalty"):
            if args.label_smoothing_factor:
                raise UserError(
                    "PlasticityCallback: label smoothing makes the Trainer ignore the model's loss, and with it the "
                    "penalty; set label_smoothing_factor=0"
                )
            self._penalty = model.register_forward_hook(_adds_penalty(self.attached, args), with_kwargs=True)
        if overrides(self.attached.intervention, "evaluated"):
            print("plastibench: the Trainer evaluates the trained weights, not the averaged copy", file=sys.stderr)


def _adds_penalty(attached: Attached, args: TrainingArguments) -> Any:
    """A forward hook that adds the penalty; a plain function, because copies of the model copy its hooks."""

    def add(module: nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if module is not attached.network.module or not (module.training and torch.is_grad_enabled()):
            return output
        if not isinstance(output, Mapping) or output.get("loss") is None:
            raise UserError("PlasticityCallback cannot add a penalty: the model returns no loss")
        kwargs = dict(kwargs)
        # With num_items_in_batch, the losses of accumulated batches are summed, not averaged. The last update of an
        # epoch may accumulate fewer batches and then has a smaller penalty.
        parts = 1
        if kwargs.pop("num_items_in_batch", None) is not None:
            parts = args.gradient_accumulation_steps
            if args.average_tokens_across_devices:  # the Trainer multiplies the loss by the number of processes
                parts *= args.world_size
        batch = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        output["loss"] = output["loss"] + attached.penalty(batch) / parts  # type: ignore[index]
        return output

    return add


def _refuses_other_branches(module: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
    """Refuse a checkpoint with other branches; the Trainer would silently skip their weights."""
    if names_in_branches(state) != names_in_branches(module.state_dict()):
        raise UserError(
            "PlasticityCallback: the checkpoint and the model have different branches, because the Trainer cannot "
            "resume plasticity-injection; use Lightning or your own training loop"
        )


def _loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    """The model's own loss, without the autocast that Accelerate wraps around ``forward`` and without hooks."""
    output: Any = type(module).forward(module, **dict(batch.items()))
    loss = output["loss"] if isinstance(output, Mapping) else output[0]
    assert isinstance(loss, Tensor)
    return loss


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
