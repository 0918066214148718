"""A trainable module with its optimizer and loss. Interventions act on it, and only this module updates weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.utils.checkpoint
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.builders import Shapes, build_like, difference, is_compiled, shapes, unwrapped
from plastibench.nn.computed_weights import computed_parameters, copied, make_plain, plain_weights
from plastibench.nn.optimizer_state import has_copies, nested
from plastibench.nn.sharded import Shards, is_sharded
from plastibench.utils import distributed
from plastibench.utils.seeding import generator as named_generator

Loss = Callable[[nn.Module, TensorDictBase], Tensor]


class UpdateHook(Protocol):
    """Something attached to a network that takes part in every update."""

    @property
    def has_penalty(self) -> bool:
        """Whether :meth:`penalty_for` may return a penalty."""

    @property
    def needs_gradients(self) -> bool:
        """Whether it reads gradients; if so, they must be unscaled first when a ``GradScaler`` is used."""

    def penalty_for(self, batch: TensorDictBase) -> Tensor | None:
        """A scalar to add to the loss of this batch, or None."""

    def before_step(self) -> None:
        """Called before every optimizer step, after gradients are computed and clipped."""

    def after_step(self) -> None:
        """Called after every optimizer step; the gradients are still available."""


class Network:
    """One trainable module of an agent.

    Attributes:
        module: The module, uncompiled; interventions edit its tensors in place.
        loss: ``loss(module, batch)``: the training loss, averaged over the samples of the batch. It must treat
            samples independently (BatchNorm does so in eval mode).
        role: Its part in the agent: ``classifier``, ``critic``, ``actor``, ``encoder``.
        outputs: Names of the output layers; if empty, every layer whose output reaches the loss without another layer
            in between.
        clip: Largest gradient norm in :meth:`update`; 0 disables clipping.
        generator: Source of all randomness of interventions, so that they never disturb that of training.
        attached: Objects that take part in every update; see :meth:`attach`.
        restarts: Functions to call when the whole network is reinitialized, for training state outside the module.
        replicas: Networks of the same architecture, such as a target network, that are rebuilt together with this one.
        is_replica: Whether this network is a replica, which is never rebuilt on its own.
        in_ddp: Whether the module was given inside DistributedDataParallel.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        loss: Loss,
        *,
        fresh: Callable[[], nn.Module] | None = None,
        role: str = "network",
        outputs: Sequence[str] = (),
        clip: float = 0.0,
        generator: torch.Generator | None = None,
        grouping: Callable[[nn.Module], list[list[nn.Parameter]]] | None = None,
    ) -> None:
        """Describe a network.

        Args:
            module: The module to keep trainable; if it is compiled or data-parallel, the inner module is used.
            optimizer: Its optimizer, whose state is reset together with the weights; None if the caller creates a
                new one after every intervention.
            loss: Mean training loss of a batch.
            fresh: Builds a newly initialized module with the parameters of ``module``; what it returns is checked. By
                default, a copy of the module is reinitialized through the
                ``reset_parameters`` of its children, which only applies PyTorch's default initialization.
            role: Its part in the agent.
            outputs: Names of the output layers, which are never revived. By default, every layer whose output reaches
                the loss without another layer in between.
            clip: Largest gradient norm in :meth:`update`; 0 disables clipping.
            generator: A CPU generator. The default has a fixed seed. Its draws differ from those after
                ``torch.manual_seed``, which may have initialized the module.
            grouping: Sorts the module's parameters into the optimizer's first groups, so that a rebuilt module is
                sorted like a new one. By default, all parameters of the module form the first group. Later groups are
                outside the module.
        """
        self.module = unwrapped(module)
        self.in_ddp = isinstance(module, nn.parallel.DistributedDataParallel)
        self.loss = loss
        self.role = role
        self.outputs = tuple(outputs)
        self.clip = clip
        self.generator = generator if generator is not None else named_generator(0, f"intervention-{role}")
        self.attached: list[UpdateHook] = []
        self.restarts: list[Callable[[], None]] = []
        self.replicas: list[Network] = []
        self.is_replica = False
        self._grouping = grouping
        self._own_groups = 1 if grouping is None else len(grouping(module))
        self._fresh = fresh
        self._original: nn.Module | None = None  # the module before its first rebuild, if no builder was given
        self._shapes = shapes(self.module)  # before any rebuild
        self._latest = self._shapes  # after the latest rebuild
        self._rebuilding = False
        self._changes: list[Callable[[nn.Module], None]] = []
        self._plain = False  # inside plain_weights()
        self._step_hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._shards = Shards(self.module)
        self.optimizer = optimizer

    # Updates -----------------------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of the module, without the wrappers of Accelerate or Lightning, which have no state.

        If training continues with a new optimizer, assign it here: attached hooks move to it, and parameters that a
        rebuild has frozen are removed from it.
        """
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        while (inner := getattr(optimizer, "optimizer", None)) is not None:
            if getattr(optimizer, "state", inner.state) is not inner.state or has_copies(optimizer):
                break  # Lookahead and the like
            optimizer = inner
        self._optimizer = optimizer
        if optimizer is not None and self._changes:
            self._own(set(self.module.parameters()))
        self._hook_steps()

    def update(self, loss: Tensor, batch: TensorDictBase, weight: float | None = None) -> Tensor:
        """Take one optimizer step on a loss and the penalties of everything attached.

        The order is: penalties, backward, clipping, ``before_step`` hooks, optimizer step, ``after_step`` hooks. The
        hooks run around every ``optimizer.step()``, so a training loop that steps the optimizer itself calls them too.

        Args:
            loss: Scalar loss of the batch.
            batch: The batch, for penalties.
            weight: If the batch is this process's part of a larger batch, the weight of its loss in the loss of the
                larger batch; gradients are then summed over the processes.

        Returns:
            Gradient norm of the module's parameters, before clipping.
        """
        optimizer = self._optimizer
        assert optimizer is not None
        for hook in self.attached:
            if (penalty := hook.penalty_for(batch)) is not None:
                loss = loss + penalty
        if weight is not None:
            loss = loss * weight
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        for parameter in trained:
            parameter.grad = None
        loss.backward(inputs=trained)  # only these: an actor's loss also runs through the critic
        if weight is not None:
            distributed.all_reduce_sum(parameter.grad for parameter in trained if parameter.grad is not None)
        own = [p for group in optimizer.param_groups[: self._own_groups] for p in group["params"]]
        norm: Tensor = nn.utils.get_total_norm([p.grad for p in own if p.grad is not None], foreach=True)
        if self.clip:
            nn.utils.clip_grads_with_norm_(own, self.clip, norm, foreach=True)
        optimizer.step()
        return norm

    def before_step(self) -> None:
        """Call the hooks that run before an optimizer step, for code that steps without ``optimizer.step()``."""
        for hook in self.attached:
            hook.before_step()

    def after_step(self) -> None:
        """Call the hooks that run after an optimizer step, for code that steps without ``optimizer.step()``."""
        for hook in [*self.attached]:
            hook.after_step()

    def attach(self, hook: UpdateHook) -> None:
        """Attach a hook, which takes part in every later update."""
        self.attached.append(hook)
        self._hook_steps()

    def detach(self, hook: UpdateHook) -> None:
        """Remove a hook. Does nothing if it is not attached."""
        if hook in self.attached:
            self.attached.remove(hook)
        self._hook_steps()

    def _hook_steps(self) -> None:
        for handle in self._step_hooks:
            handle.remove()
        self._step_hooks = []
        if self.attached:
            hooked = next((each for each in nested(self._optimizer) if hasattr(each, "register_step_pre_hook")), None)
            if hooked is not None:  # a wrapper, such as ScheduleFreeWrapper, may accept no hooks
                self._step_hooks.append(hooked.register_step_pre_hook(self._before_step))
                self._step_hooks.append(hooked.register_step_post_hook(self._after_step))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first argument is the optimizer itself
        if closure is None:
            self._call_before_step(optimizer)
            return None

        def closure_then_hooks() -> Any:  # gradients exist only after the closure has run
            loss = closure()
            self._call_before_step(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": closure_then_hooks}

    def _call_before_step(self, optimizer: torch.optim.Optimizer) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        if _skips_step(optimizer):
            return
        if scale is not None and any(hook.needs_gradients for hook in self.attached):
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.before_step()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not _skips_step(optimizer):
            self.after_step()

    # Sharded parameters -----------------------------------------------------------------------------------------

    @property
    def is_sharded(self) -> bool:
        """Whether the parameters are divided among processes (FSDP2)."""
        return is_sharded(self.module)

    def full_parameters(self, *, gradients: bool = False) -> AbstractContextManager[None]:
        """Let methods see full parameters and optimizer state inside the block, if they are sharded.

        See :meth:`Shards.full <plastibench.nn.sharded.Shards.full>`.
        """
        return self._shards.full(self._optimizer, gradients=gradients) if self.is_sharded else nullcontext()

    def sharded_penalty(self, penalty: Callable[[], Tensor | None]) -> Tensor | None:
        """Compute a penalty on full parameters; see :meth:`Shards.penalty <plastibench.nn.sharded.Shards.penalty>`."""
        return self._shards.penalty(self._optimizer, penalty) if self.is_sharded else penalty()

    # Fresh weights and other architectures -----------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.module.parameters()).device

    def fresh(self) -> nn.Module:
        """A newly initialized module on the same device; the global random state does not change."""
        with seeded(self._seed()):
            module = self.builder()()
        return module.to(self.device)

    def builder(self) -> Callable[[], nn.Module]:
        """A function that builds newly initialized modules of the current architecture on the CPU.

        It draws from the global random state; call it inside :func:`seeded` (see :meth:`rebuild`).
        """
        changes = [*self._changes]

        def build() -> nn.Module:
            if self._fresh is not None:
                module = build_like(self._fresh, self.module, self._expected())
            else:
                module = _reinitialized(self.module if self._original is None else self._original)
            for change in changes:
                change(module)
            if self._plain:
                make_plain(module)
            elif changes and not self._rebuilding and (grown := self.changed_by_others()):
                raise UserError(f"no fresh weights for this network: {grown}; change its layers before you attach")
            return module

        return build

    @property
    def rebuilds(self) -> int:
        """Number of times that the architecture has changed."""
        return len(self._changes)

    def _expected(self) -> Shapes:
        """Shapes of the parameters that the builder must return, before the architecture changes."""
        first = bool(self._changes) or self._rebuilding or self._plain
        return self._shapes if first else shapes(self.module)  # the module may have grown by other means

    @contextmanager
    def plain_weights(self) -> Iterator[None]:
        """Make weights that are computed from other parameters ordinary inside the block, also in fresh modules.

        This applies only to weights that can be written back; see :mod:`plastibench.nn.computed_weights`.
        """
        with plain_weights(self.module, self._optimizer) as self._plain:
            try:
                yield
            finally:
                self._plain = False

    def changed_by_others(self) -> str:
        """Name a parameter that code other than :meth:`rebuild` added, removed or reshaped; '' if there is none."""
        return "" if self._plain else difference(shapes(self.module), self._latest)

    def add_replica(self, replica: Network) -> None:
        """Rebuild another network of the same architecture, such as a target network, together with this one."""
        self.replicas.append(replica)
        replica.is_replica = True

    def rebuild(self, change: Callable[[nn.Module], None]) -> None:
        """Change the architecture in place; optimizer, fresh modules and replicas change with it.

        Replicas draw the same random numbers and keep their own weights otherwise. On a replica this does nothing, so
        that an intervention can be prepared on a target network like on any other.

        Args:
            change: Replaces children or parameters of the module it is given. It is called with this network's module
                now and with every fresh module later, always inside :func:`seeded`. Parameters that it freezes leave
                the optimizer and lose their gradients.
        """
        if self.is_replica:
            return
        seed = self._seed()
        for network in (self, *self.replicas):
            network._change(change, seed)

    def _change(self, change: Callable[[nn.Module], None], seed: int) -> None:
        device, before = self.device, set(self.module.parameters())
        if self._fresh is None and self._original is None:
            self._original = copied(self.module)
        self._rebuilding = True
        try:
            with seeded(seed):
                change(self.module)
        finally:
            self._rebuilding = False
        self.module.to(device)
        self._changes.append(change)
        self._latest = shapes(self.module)
        if self.is_replica:
            self.module.requires_grad_(False)
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        if self._optimizer is not None:
            self._own(before)

    def _own(self, before: set[nn.Parameter]) -> None:
        assert self._optimizer is not None
        after = [p for p in self.module.parameters() if p.requires_grad]
        groups = self._grouping(self.module) if self._grouping is not None else []
        _own(self._optimizer, before, after, {p: number for number, group in enumerate(groups) for p in group})

    def _seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self.generator))

    def not_reinitializable(self) -> list[str]:
        """Names of the parameters that :meth:`fresh` cannot reinitialize, because their initialization is unknown."""
        if self._fresh is not None:
            return []
        computed = computed_parameters(self.module)  # reset_parameters() writes into what is computed from them
        return [
            name
            for prefix, module in self.module.named_modules()
            for name in (f"{prefix}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False))
            if not hasattr(module, "reset_parameters") or name in computed
        ]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator inside the block and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; restore the mode of every submodule afterwards.

    Some modules cache tensors or merge weights when they enter eval mode (timm's LeViT, LoRA layers). They are returned
    to train mode before every forward pass and at the end, because their cache belongs to other weights or to another
    graph.
    """
    training = {child: child.training for child in module.modules()}
    reacts = any(type(child).train is not nn.Module.train for child in training)
    hook = module.register_forward_pre_hook(lambda _, args: _enter_eval(module)) if reacts else None
    module.eval()
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
            module.train().train(training[module])
        for child, mode in training.items():
            child.training = mode


def _enter_eval(module: nn.Module) -> None:
    module.train().eval()


@contextmanager
def as_evaluated(module: nn.Module) -> Iterator[None]:
    """Eval mode in full float32 precision: no autocast, no TF32, and nothing that hides submodules.

    A fused encoder skips submodules, compiled code hides its functions, and activation checkpointing with
    ``use_reentrant=True`` first runs submodules without gradients.
    """
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fused = torch.backends.mha.get_fastpath_enabled()
    device = next(module.parameters()).device.type
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(module), torch.autocast(device, enabled=False), _eager(module), _no_checkpoints():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """Run modules uncompiled that were compiled by ``module.compile()`` or ``torch.compile(part)``."""
    if any(child._compiled_call_impl is not None or is_compiled(child) for child in module.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def _no_checkpoints() -> Iterator[None]:
    """Compute activations only once, even if they are checkpointed with ``use_reentrant=True``."""
    function = torch.utils.checkpoint.CheckpointFunction
    before = vars(function).get("apply")  # None, except inside another such block
    function.apply = lambda run, preserve, *inputs: run(*inputs)
    try:
        yield
    finally:
        if before is None:
            del function.apply  # restores that of the base class
        else:
            function.apply = before


def as_batch(batch: TensorDictBase | Mapping[str, Tensor]) -> TensorDictBase:
    """Convert a TensorDict or a dict of tensors to a TensorDict with one batch dimension."""
    if isinstance(batch, TensorDictBase):
        return batch if batch.batch_dims == 1 else batch.reshape(-1)
    if isinstance(batch, Mapping):
        return TensorDict(dict(batch), batch_size=[len(next(iter(batch.values())))])
    if isinstance(batch, tuple | list | Tensor):
        raise UserError(
            f"a batch must be a TensorDict or a dict of tensors, such as {{'x': x, 'y': y}}; got {type(batch)}"
        )
    return batch  # the stand-in for a missing batch, which raises an error when a method looks at it


def _own(
    optimizer: torch.optim.Optimizer,
    before: set[nn.Parameter],
    after: list[nn.Parameter],
    sorted_into: Mapping[nn.Parameter, int],
) -> None:
    """Replace the parameters ``before`` with ``after`` in the optimizer; parameters outside the module stay.

    ``sorted_into`` determines the group of new parameters (default: group 0). Parameters of ``before`` that the
    optimizer did not own are not added. Each group is sorted in the module's order, as in a newly created optimizer,
    because optimizer states are saved by position.
    """
    groups = optimizer.param_groups
    owner = {p: number for number, group in enumerate(groups) for p in group["params"]}
    for number, group in enumerate(groups):
        others = [p for p in group["params"] if p not in before]
        mine = [p for p in after if (owner.get(p) if p in before else sorted_into.get(p, 0)) == number]
        group["params"] = mine + others
    for each in nested(optimizer):
        for gone in before - set(after):
            each.state.pop(gone, None)


def _reinitialized(module: nn.Module) -> nn.Module:
    module = copied(module).cpu()
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    for child in module.modules():  # PEFT's layers, after the Linears of which they consist: B starts at zero
        reset_adapter = getattr(child, "reset_lora_parameters", None)
        if callable(reset_adapter):
            for adapter in child.lora_A:  # type: ignore[union-attr]
                reset_adapter(adapter, True)
    return module


def _skips_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer to skip this step, because gradients are not finite."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
