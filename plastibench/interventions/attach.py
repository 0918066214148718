"""Attach an intervention to one network: in a run, in your own training loop, or for a single use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from plastibench.config.errors import DivergedError, UserError
from plastibench.config.options import build
from plastibench.config.own_code import describe as locate
from plastibench.config.own_code import raised_by_own_code
from plastibench.config.registry import interventions
from plastibench.interventions.base import Intervention, Report, name_of, overrides
from plastibench.interventions.class_checks import check_method
from plastibench.interventions.effects import Effects
from plastibench.interventions.intervention_log import InterventionLog, LogTarget
from plastibench.nn.agreement import copy_buffers_from_first, copy_network_from_first
from plastibench.nn.all_or_nothing import all_or_nothing
from plastibench.nn.computed_weights import describe
from plastibench.nn.coverage import Coverage, coverage, warning
from plastibench.nn.network import Loss, Network, as_batch
from plastibench.nn.sharded import check_sharding
from plastibench.nn.units import checked_outputs
from plastibench.utils import distributed
from plastibench.utils.notices import print_once
from plastibench.utils.stopwatch import stopwatch
from plastibench.utils.wording import plural

Batch: TypeAlias = TensorDictBase | Mapping[str, Tensor]


def attach(
    intervention: str | Intervention,
    model: Network | nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    loss_fn: Loss | None = None,
    *,
    outputs: Sequence[str] = (),
    log: LogTarget = None,
    **options: Any,
) -> Attached:
    """Attach an intervention to a model and hook into its optimizer.

    The architecture may change here, so attach before you load a state dict.

    If torch.distributed runs several processes, they must train one model together, with DistributedDataParallel or
    ``fully_shard``. All processes then start from the weights of the first one.

    Args:
        intervention: A registered name, a combination such as ``l2-init+rnr``, or an instance that is not attached to
            any other network.
        model: The module to keep trainable, or a :class:`~plastibench.nn.network.Network` that describes it.
        optimizer: Its optimizer; only with a module.
        loss_fn: ``loss_fn(model, batch)``, the mean training loss of a batch; only with a module. Methods that score
            units by gradients call it.
        outputs: Names of the output layers; only with a module. By default, every layer whose output reaches the loss
            without another layer in between.
        log: Where to write what each intervention did, with plasticity metrics before and after it: ``"stdout"``, a
            text stream, a ``logging.Logger``, TensorBoard's ``SummaryWriter`` or a Lightning logger; None: nowhere.
        options: Options of a named intervention; those of a combination as ``l2_init__strength=0.001``.

    Returns:
        The handle of the attached intervention.

    Raises:
        UserError: A name is unknown, an option does not apply, or the method cannot act on the model.
    """
    if not isinstance(model, Network | nn.Module):
        raise UserError(f"attach: the model is a {type(model).__name__}; pass name, model, optimizer, loss_fn")
    if isinstance(model, Network):
        if optimizer is not None or loss_fn is not None or outputs:
            raise UserError(
                "attach: a Network already has its optimizer, loss and outputs; pass these only with a plain module"
            )
        network = model
    else:
        network = Network(model, optimizer, loss_fn or _no_loss, outputs=checked_outputs(model, outputs))
    method = create(intervention, **options)
    name = intervention if isinstance(intervention, str) else type(method).__name__
    _check_processes(network, method)
    _check_module(network, method)
    _check_optimizer(network.optimizer, network.module)
    with network.full_parameters():
        written = None if log is None or log is False else InterventionLog(log, name, network)
        copy_network_from_first(network)
        with network.plain_weights() if only_intervenes(method) else nullcontext():
            method.prepare(network)
    handle = Attached(method, network)
    handle.log = written if distributed.is_writer() else None
    return handle


def apply(
    intervention: str | Intervention,
    model: nn.Module,
    batch: Batch | None = None,
    loss_fn: Loss | None = None,
    **options: Any,
) -> nn.Module:
    """Apply an intervention once, for example before fine-tuning; the model is edited in place and returned.

    Args:
        intervention: A registered name or an instance.
        model: The module to act on.
        batch: Representative data; methods that look at activations or gradients need it.
        loss_fn: ``loss_fn(model, batch)``, the mean training loss; methods that look at gradients need it.
        options: Options of a named intervention.

    Raises:
        UserError: The method needs a batch or a loss that was not given, or works only during training; the model is
            then unchanged.
    """
    before = [*model.state_dict()]
    handle = attach(intervention, model, None, loss_fn, **options)
    if not overrides(handle.intervention, "intervene") and [*model.state_dict()] == before:
        name = name_of(handle.intervention)
        what = "changes nothing" if name == "none" else "works only during training; use attach"
        raise UserError(f"apply: {name} {what}")
    try:
        handle.intervene(_NoBatch() if batch is None else batch, expect_steps=False)
    finally:
        handle.detach()
    return model


def create(intervention: str | Intervention, **options: Any) -> Intervention:
    """An instance of a named intervention; an instance is returned as it is.

    Raises:
        UserError: A name is unknown, an option does not apply, or options were passed with an instance.
    """
    if isinstance(intervention, str):
        entry = interventions[intervention]
        built: Any = build(entry.load(), options, f"intervention {intervention}", entry.defaults)
        built._registered_name = entry.name
        intervention = built
    elif options:
        name = name_of(intervention)
        raise UserError(f"options apply only to an intervention given by name; set them when you create {name}")
    check_method(intervention)
    assert isinstance(intervention, Intervention)
    return intervention


class Attached:
    """An intervention that is attached to one network; created by :func:`attach`.

    It takes part in every optimizer step, whether the step is made by :meth:`Network.update
    <plastibench.nn.network.Network.update>`, your own loop, a learning-rate scheduler's wrapper, a ``GradScaler`` or
    with a closure. It sees unscaled and clipped gradients. Steps that a scaler skips are not counted. With a fused
    optimizer, this check synchronizes with the device.

    Attributes:
        intervention: The intervention.
        network: Its network.
        steps: Optimizer steps so far.
        report: What the latest call of :meth:`intervene` did.
        log: Where interventions are logged, or None.
        effects: Whether the hooks have changed the network; None if this is not tracked (see :class:`Effects
            <plastibench.interventions.effects.Effects>`).
    """

    def __init__(self, intervention: Intervention, network: Network) -> None:
        self.intervention, self.network = intervention, network
        self.steps = 0
        self.report: Report | None = None
        self._only_intervenes = only_intervenes(intervention)
        self.effects: Effects | None = None
        self.log: InterventionLog | None = None
        self._penalizes = overrides(intervention, "penalty")
        self._before = overrides(intervention, "before_update")
        self._after = overrides(intervention, "after_update")
        self._averages = overrides(intervention, "evaluated")
        self._awaits_penalty = self._penalizes
        self._acted_at = 0
        self._every = 0
        self._draw: Callable[[], Batch] | None = None
        network.attach(self)
        if _acts_on_units(intervention) and (note := warning(network.module)):
            print_once(f"plastibench: {type(intervention).__name__} on the {network.role}: {note}")

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The network's optimizer; assign the new one if a task starts with a new optimizer."""
        return self.network.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        _check_optimizer(optimizer, self.network.module)
        self.network.optimizer = optimizer

    def coverage(self, batch: Batch) -> Coverage:
        """Report which modules are covered by unit-level methods, and why the others are not.

        Args:
            batch: A batch that the network's loss accepts; its first samples are used.
        """
        plain = self.network.plain_weights() if self._only_intervenes else nullcontext()
        with self.network.full_parameters(), plain:
            return coverage(self.network, as_batch(batch))

    def schedule(self, every: int, draw: Callable[[], Batch]) -> None:
        """Intervene automatically after every ``every`` optimizer steps, on the batch that ``draw()`` returns."""
        if every < 1:
            raise UserError(f"schedule: every is {every}; it must be at least 1")
        self._every, self._draw = every, draw

    def penalty(self, batch: Batch) -> Tensor | float:
        """The penalty to add to the loss of this batch, after its forward pass; 0 if the method has none.

        Call it in a loop that steps the optimizer itself; ``Network.update`` adds the penalty.
        """
        found = self.penalty_for(as_batch(batch))
        return 0.0 if found is None else found

    def intervene(self, batch: Batch, *, expect_steps: bool = True, gather: bool = True) -> Report:
        """Act on the network: at a task boundary, or every N updates.

        With several processes, all of them must call it. They act on the batches of all processes together.

        Args:
            batch: A large representative batch of the data to come, with everything that the network's loss needs.
            expect_steps: Warn if no optimizer step was seen since the last call.
            gather: Whether the processes have different batches. If False, all pass the same one.

        Raises:
            UserError: The method cannot act on this network or batch. Module and optimizer are then unchanged.
        """
        if expect_steps and self.steps == self._acted_at and (self._before or self._after):
            print(
                "plastibench: no optimizer step was seen since the last intervention; "
                "if you created a new optimizer, assign it: attached.optimizer = optimizer",
                file=sys.stderr,
            )
        self._acted_at = self.steps
        batch = as_batch(batch)
        if gather and isinstance(batch, TensorDictBase):
            batch = distributed.gather_batch(batch)
        with self.network.full_parameters():
            copy_buffers_from_first(self.network)
            before = self.log.health(self.network, batch) if self.log is not None else {}
            plain = self.network.plain_weights() if self._only_intervenes else nullcontext()
            whole = all_or_nothing(self.network)
            with self._explained(), self._watched("intervene"), stopwatch(self.network.device) as elapsed, whole, plain:
                self.report = self.intervention.intervene(self.network, batch)
            copy_network_from_first(self.network)
            report = self.report
            report.seconds, report.cpu_seconds, report.gpu_seconds = elapsed.wall, elapsed.cpu, elapsed.gpu
            if self.log is not None:
                self.log.write(self.steps, report, before, self.log.health(self.network, batch))
        return report

    def __repr__(self) -> str:
        module = type(self.network.module).__name__
        return f"Attached({name_of(self.intervention)} on {module}, {plural(self.steps, 'step')})"

    @property
    def evaluated(self) -> nn.Module:
        """The module to evaluate: the network's own, or an averaged copy of it."""
        with self._explained(), self.network.full_parameters() if self._averages else nullcontext():
            return self.intervention.evaluated(self.network)

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume, besides the module's and the optimizer's; safe for ``weights_only=True``."""
        generator = self.network.generator.get_state()
        counts = {"steps": self.steps, "acted-at": self._acted_at}
        return {"intervention": self.intervention.state_dict(), "generator": generator, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from :meth:`state_dict`. Call it before you load module and optimizer: it may rebuild the module."""
        with self.network.full_parameters():
            self.intervention.load_state_dict(state["intervention"])
        self.network.generator.set_state(state["generator"].cpu())
        self.steps, self._acted_at = state["steps"], state.get("acted-at", -1)

    def detach(self) -> None:
        """Detach from the optimizer. Changes to the network are kept."""
        self.network.detach(self)

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    # What the network calls around every update ------------------------------------------------------------------

    @property
    def has_penalty(self) -> bool:
        """Whether the intervention adds a penalty to the loss."""
        return self._penalizes

    @property
    def needs_gradients(self) -> bool:
        """Whether the intervention reads gradients."""
        return self._before or self._after

    def penalty_for(self, batch: TensorDictBase) -> Tensor | None:
        """The penalty of this batch, or None."""
        self._awaits_penalty = False
        if not self._penalizes:
            return None
        with self._explained():
            term = self.network.sharded_penalty(lambda: self.intervention.penalty(self.network, batch))
        if self.effects is not None:
            self.effects.count_penalty(term)
        return term

    def before_step(self) -> None:
        """Call ``before_update``; refuse a step whose loss lacks the penalty."""
        if self._awaits_penalty:
            name = name_of(self.intervention)
            raise UserError(
                f"{name} needs its penalty in the loss: add attached.penalty(batch) before every optimizer step"
            )
        if self._before:
            with self._explained(), self.network.full_parameters(gradients=True), self._watched("before_update"):
                self.intervention.before_update(self.network)

    def after_step(self) -> None:
        """Call ``after_update``, and intervene if the schedule says so."""
        self.steps += 1
        if self._after:
            with self._explained(), self.network.full_parameters(gradients=True), self._watched("after_update"):
                self.intervention.after_update(self.network)
        if self._draw is not None and self.steps % self._every == 0:
            self.intervene(self._draw())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Explain a failing hook: the architecture has changed, the batch lacks a key, or the network has diverged."""
        try:
            yield
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            if raised_by_own_code(error):  # a plugin, which is named together with its line
                raise
            raise DivergedError(
                f"{name_of(self.intervention)} cannot solve its equations, because the weights or activations of the "
                f"{self.network.role} are not finite or too large ({error})"
            ) from error
        except (RuntimeError, LookupError, ValueError, AttributeError, TypeError) as error:
            name, changed = name_of(self.intervention), self.network.changed_by_others()
            if isinstance(error, KeyError) and not changed:  # most often a loss that reads what the batch lacks
                raise UserError(f"{name}: {locate(error)}") from error
            if not changed:
                raise
            raise UserError(
                f"{name} cannot act on a network that has changed since attach: {changed}; call detach(), and attach "
                f"again ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            ) from error

    def _watched(self, hook: str) -> AbstractContextManager[None]:
        return nullcontext() if self.effects is None else self.effects.watch(hook, self.network)


def only_intervenes(method: Intervention) -> bool:
    """Whether a method changes values only in ``intervene``, where it may see other parameters than in updates.

    See :meth:`Network.plain_weights <plastibench.nn.network.Network.plain_weights>`.
    """
    parts = method.wrapped()
    if any(overrides(method, hook) for hook in ("penalty", "before_update", "after_update", "evaluated")):
        return False
    return all(map(only_intervenes, parts)) if parts else getattr(method, "kind", "") != "architecture"


def _check_processes(network: Network, method: Intervention) -> None:
    """Refuse models that are divided or copied among processes in a way that the method cannot work with."""
    name = name_of(method)
    changes = _changes_architecture(method)
    check_sharding(network.module, changes_architecture=name if changes else "")
    if not changes or distributed.world_size() == 1:
        return
    if network.in_ddp:
        raise UserError(f"attach: {name} changes the architecture; attach it before DistributedDataParallel(model)")
    if _changes_architecture(method, later=True):
        raise UserError(
            f"attach: {name} changes the architecture during training, which DistributedDataParallel does not allow; "
            "train in one process or choose another method"
        )


def _changes_architecture(method: Intervention, *, later: bool = False) -> bool:
    """Whether a method changes the architecture, or does so after training has started (``later``)."""
    own = method.grows if later else getattr(method, "kind", "") == "architecture"
    return own or any(_changes_architecture(part, later=later) for part in method.wrapped())


def _check_module(network: Network, method: Intervention) -> None:
    """Refuse uninitialized lazy modules, and print which weights the method does not write."""
    lazy = [name for name, p in network.module.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise UserError(f"attach: {lazy[0]} is a lazy module without weights; run the model on one batch first")
    sizes = {
        flag: sum(p.numel() for p in network.module.parameters() if p.requires_grad is flag) for flag in (True, False)
    }
    if sizes[True] and sizes[False] and distributed.is_writer():
        total = sum(sizes.values())
        print(
            f"plastibench: {sizes[False]:,} of {plural(total, 'parameter')} are frozen and will not be changed",
            file=sys.stderr,
        )
    if skipped := describe(network.module, always=not only_intervenes(method)):
        print(f"plastibench: {skipped}", file=sys.stderr)


def _acts_on_units(intervention: Intervention) -> bool:
    return getattr(intervention, "kind", "") == "units" or any(map(_acts_on_units, intervention.wrapped()))


def _check_optimizer(optimizer: torch.optim.Optimizer | None, module: nn.Module) -> None:
    if optimizer is None:
        return
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise UserError(f"attach: the optimizer is a {type(optimizer).__name__}; pass name, model, optimizer, loss_fn")
    owned = {id(parameter) for group in groups for parameter in group["params"]}
    if not any(id(parameter) in owned for parameter in module.parameters()):
        raise UserError("attach: the optimizer has none of the model's parameters; create it from model.parameters()")


class _NoBatch:
    """Stands for the batch that :func:`apply` was not given; any use of it says what is missing."""

    def _refuse(self, *_: Any) -> Any:
        raise UserError("apply: this intervention needs data; pass batch=… (and loss_fn=… if it uses gradients)")

    __getattr__ = __getitem__ = __len__ = __iter__ = _refuse


def _no_loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    raise UserError("this intervention needs the training loss; pass loss_fn=…, a function of (model, batch)")
