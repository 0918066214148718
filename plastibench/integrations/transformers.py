"""Interventions in the Trainer of Hugging Face transformers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plastibench.config.errors import UserError
from plastibench.integrations.shared import Draw, Schedule, collate
from plastibench.interventions.attach import Attached, attach
from plastibench.interventions.base import Intervention, overrides
from plastibench.nn.branches import names_in_branches
from plastibench.nn.network import Network, as_batch

_FILE = "plastibench.pt"


class PlasticityCallback(TrainerCallback):
    """``Trainer(..., callbacks=[PlasticityCallback("rnr", every=1000)])``.

    The network is prepared when the Trainer is made (give the callback to its constructor, so that this comes before a
    checkpoint is loaded) and worked on right after an optimizer step that the schedule names, before logging,
    evaluation and saving. A penalty is added to the loss that the model itself returns in train mode, once per
    accumulated update. State lies in each checkpoint as ``plastibench.pt``.

    - Trained on one device, in one process; a sharded or replicated model is refused.
    - Fresh weights come from the model's class and config, or from PyTorch's defaults where it has no config. Of a
      pretrained model that means new random weights.
    - A model with branches (``plasticity-injection``) cannot be resumed: the Trainer loads its weights and makes its
      optimizer before it says which checkpoint it resumes. Such a checkpoint is refused.
    - The Trainer evaluates the model itself. Evaluate a method's slow copy, ``callback.attached.evaluated``, yourself.

    Attributes:
        attached: The intervention at work, once there is a model.
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
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Say what to do when.

        Args:
            intervention: A registered name, or an instance, of which each model gets a copy.
            every: Intervene after every so many optimizer steps.
            steps: Intervene after these optimizer steps.
            epochs: Intervene at the end of these epochs, counted from 1.
            size: Samples of the training data that an intervention sees
                (:func:`~plastibench.integrations.shared.collate` says how they are drawn).
            draw: Returns the batch instead.
            options: Options of a named intervention.
            seed: Of all randomness of the intervention.
        """
        self.intervention, self.options = intervention, dict(options or {})
        self.schedule = Schedule(every, steps, epochs)
        self.size, self.draw, self.seed = size, draw, seed
        self.attached: Attached | None = None
        self._penalty: torch.utils.hooks.RemovableHandle | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prepare the model while it has no optimizer yet."""
        self._attach(args, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follow the optimizer of this training, and take up the checkpoint's state."""
        if self.attached is None or self.attached.network.module is not kwargs["model"]:
            if state.global_step:
                raise UserError("PlasticityCallback: to resume, give Trainer(…) both the model and the callback")
            self._attach(args, kwargs["model"], kwargs["optimizer"])
        assert self.attached is not None
        self.attached.optimizer = kwargs["optimizer"]
        if state.global_step:
            given = args.resume_from_checkpoint
            folder = Path(given) if isinstance(given, str) and Path(given).is_dir() else _folder(args, state)
            if not (folder / _FILE).is_file():
                raise UserError(f"PlasticityCallback: {folder} has no {_FILE}; resume in the folder of the first run")
            self.attached.load_state_dict(torch.load(folder / _FILE, map_location="cpu", weights_only=True))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Intervene where it is due."""
        epoch = state.epoch or 0.0
        if self.schedule.due(state.global_step, int(epoch) if epoch == int(epoch) else 0):
            assert self.attached is not None
            network = self.attached.network
            batch = self.draw() if self.draw else collate(kwargs["train_dataloader"], self.size, network.generator)
            self.attached.intervene(as_batch(batch).to(network.device))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the intervention's state beside the model's."""
        if self.attached is not None and _folder(args, state).is_dir():
            torch.save(self.attached.state_dict(), _folder(args, state) / _FILE)

    def _attach(
        self, args: TrainingArguments, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        if args.world_size > 1 or args.n_gpu > 1 or args.deepspeed or args.fsdp:
            raise UserError("PlasticityCallback: one process and one device only; processes would drift apart")
        if self._penalty is not None:
            self._penalty.remove()
        config = getattr(model, "config", None)
        fresh = (lambda: type(model)(copy.deepcopy(config))) if config is not None else None
        generator = torch.Generator().manual_seed(self.seed)
        network = Network(model, optimizer, _loss, fresh=fresh, generator=generator)
        self.attached = attach(copy.deepcopy(self.intervention), network, **self.options)
        model.register_load_state_dict_pre_hook(_refuses_other_branches)
        if overrides(self.attached.intervention, "penalty"):
            if args.label_smoothing_factor:
                raise UserError("PlasticityCallback: with label smoothing the Trainer ignores the model's loss")
            self._penalty = model.register_forward_hook(_adds_penalty(self.attached, args), with_kwargs=True)
        if overrides(self.attached.intervention, "evaluated"):
            print("plastibench: the Trainer evaluates the trained weights, not their slow copy", file=sys.stderr)


def _adds_penalty(attached: Attached, args: TrainingArguments) -> Any:
    """A forward hook; a plain function, for copies of the model copy its hooks."""

    def add(module: nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if module is not attached.network.module or not (module.training and torch.is_grad_enabled()):
            return output
        if not isinstance(output, Mapping) or output.get("loss") is None:
            raise UserError("PlasticityCallback: the model returns no loss to which the penalty could be added")
        kwargs = dict(kwargs)
        # A loss over the items of all accumulated batches is summed over them, not averaged. (The last update of an
        # epoch may accumulate fewer; its penalty is smaller in proportion.)
        parts = args.gradient_accumulation_steps if kwargs.pop("num_items_in_batch", None) is not None else 1
        batch = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        output["loss"] = output["loss"] + attached.penalty(batch) / parts  # type: ignore[index]
        return output

    return add


def _refuses_other_branches(module: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
    """The Trainer loads weights by name and takes no notice of those that fit nowhere."""
    if names_in_branches(state) != names_in_branches(module.state_dict()):
        raise UserError(
            "PlasticityCallback: this checkpoint was saved before or after an injection that the model here has not "
            "or has had; the Trainer cannot resume plasticity-injection (Lightning's and a loop of your own can)"
        )


def _loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    """The model's own loss, past the autocast that Accelerate puts around ``forward``, and past hooks."""
    output: Any = type(module).forward(module, **dict(batch.items()))
    loss = output["loss"] if isinstance(output, Mapping) else output[0]
    assert isinstance(loss, Tensor)
    return loss


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
