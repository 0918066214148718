"""A trainable module with all that an intervention may need to know of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

Loss = Callable[[nn.Module, TensorDictBase], Tensor]


class Network:
    """One trainable module of an agent: what interventions work on.

    Attributes:
        module: The module itself, uncompiled; interventions edit its tensors in place.
        optimizer: Its optimizer, or None where the caller builds a new one after every intervention.
        loss: ``loss(module, batch)``: the training loss, averaged over the samples of the batch. It must treat
            samples independently (in eval mode BatchNorm does).
        role: Its part in the agent: ``classifier``, ``critic``, ``actor``, ``encoder``.
        outputs: Names of the modules whose outputs are the network's own, where it is not the last one alone.
        generator: Source of all randomness of interventions, so that they never disturb the training's.
        penalties: Functions of (network, batch) whose scalars the agent adds to the training loss.
        before_steps: Functions of the network that the agent calls between backward pass and optimizer step.
        restarts: Functions to call when the whole network is drawn anew: what starts with it and is in no module.
        followers: Networks of the same architecture, as a target network, that are rebuilt together with this one.
        led: Whether this network is such a follower, which is never rebuilt by itself.
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
        generator: torch.Generator | None = None,
    ) -> None:
        """Describe a network.

        Args:
            module: The module to keep trainable.
            optimizer: Its optimizer, whose state is reset with the weights.
            loss: Mean training loss of a batch.
            fresh: Builds the module anew with new random weights. Without it, a copy is re-initialised module by
                module through ``reset_parameters``, which knows PyTorch's defaults only.
            role: Its part in the agent.
            outputs: Output modules of a network that has several, as two critics or a value and an advantage;
                none is ever revived. By default the module with units that runs last.
            generator: A CPU generator; by default one seeded with 0.
        """
        self.module = module
        self.optimizer = optimizer
        self.loss = loss
        self.role = role
        self.outputs = tuple(outputs)
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.penalties: list[Callable[[Network, TensorDictBase], Tensor | None]] = []
        self.before_steps: list[Callable[[Network], None]] = []
        self.restarts: list[Callable[[], None]] = []
        self.followers: list[Network] = []
        self.led = False
        self._fresh = fresh
        self._before: nn.Module | None = None  # the module as it was before the first change, where nothing builds it
        self._changes: list[Callable[[nn.Module], None]] = []

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.module.parameters()).device

    def fresh(self) -> nn.Module:
        """A newly initialised copy of the module on its device; the global random state is left as it was."""
        with seeded(self._seed()):
            module = self.builder()()
        return module.to(self.device)

    def builder(self) -> Callable[[], nn.Module]:
        """Builds newly initialised modules of the present architecture, on the CPU, from the global random state.

        For changes that need new weights, which draw from a seeded state (see :meth:`rebuild`).
        """
        changes = [*self._changes]

        def build() -> nn.Module:
            if self._fresh is not None:
                module = self._fresh()
            else:
                module = _reinitialised(self.module if self._before is None else self._before)
            for change in changes:
                change(module)
            return module

        return build

    def lead(self, follower: Network) -> None:
        """Have another network of the same architecture, as a target, rebuilt together with this one."""
        self.followers.append(follower)
        follower.led = True

    def rebuild(self, change: Callable[[nn.Module], None]) -> None:
        """Change the architecture in place; optimizer, fresh draws and followers change with it.

        What a change draws at random is the same in the followers, and whatever it keeps stays theirs. Called on a
        follower this does nothing, so that an intervention may be prepared on a target as on any network.

        Args:
            change: Replaces children or parameters of a module that it is given; called with this network's module
                now and with every fresh one later, always inside of :func:`seeded`. Parameters that it freezes leave
                the optimizer and lose their gradients.
        """
        if self.led:
            return
        seed = self._seed()
        for network in (self, *self.followers):
            network._change(change, seed)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimizer that was made for the module as it is; parameters that changes have frozen leave it."""
        self.optimizer = optimizer
        if self._changes:
            _own(optimizer, set(self.module.parameters()), [p for p in self.module.parameters() if p.requires_grad])

    def _change(self, change: Callable[[nn.Module], None], seed: int) -> None:
        device, before = self.device, set(self.module.parameters())
        if self._fresh is None and self._before is None:
            self._before = copy.deepcopy(self.module)
        with seeded(seed):
            change(self.module)
        self.module.to(device)
        self._changes.append(change)
        if self.led:
            self.module.requires_grad_(False)
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                parameter.grad = None
        if self.optimizer is not None:
            _own(self.optimizer, before, [p for p in self.module.parameters() if p.requires_grad])

    def _seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self.generator))

    def not_reinitializable(self) -> list[str]:
        """Parameters that :meth:`fresh` returns unchanged, because nothing says how they were initialised."""
        if self._fresh is not None:
            return []
        return [
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.module.named_modules()
            if not hasattr(module, "reset_parameters")
            for name, _ in module.named_parameters(recurse=False)
        ]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global CPU randomness from ``seed`` inside the block, and undisturbed after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every submodule's own mode comes back afterwards."""
    training = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in training.items():
            child.training = mode


@contextmanager
def as_evaluated(module: nn.Module) -> Iterator[None]:
    """Eval mode, full float32 precision, no autocast, and no fused encoder, which would run no submodule."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fused = torch.backends.mha.get_fastpath_enabled()
    device = next(module.parameters()).device.type
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(module), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.mha.set_fastpath_enabled(fused)


def as_batch(batch: TensorDictBase | Mapping[str, Tensor]) -> TensorDictBase:
    """A TensorDict whose first dimension counts samples, from one or from a plain dict of tensors."""
    if isinstance(batch, TensorDictBase):
        return batch if batch.batch_dims == 1 else batch.reshape(-1)
    return TensorDict(dict(batch), batch_size=[len(next(iter(batch.values())))])


def _own(optimizer: torch.optim.Optimizer, before: set[nn.Parameter], after: list[nn.Parameter]) -> None:
    """Have the optimizer step on ``after`` instead of ``before``; what is no one's but the optimizer's stays.

    New parameters join group 0; those of ``before`` that it did not own stay out of it. Each group is put in the
    module's order, which is that of an optimizer made anew: states are saved by position.
    """
    groups = optimizer.param_groups
    owner = {p: number for number, group in enumerate(groups) for p in group["params"]}
    for number, group in enumerate(groups):
        others = [p for p in group["params"] if p not in before]
        mine = [p for p in after if (owner.get(p) if p in before else 0) == number]
        group["params"] = mine + others
    for gone in before - set(after):
        optimizer.state.pop(gone, None)


def _reinitialised(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module).cpu()
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    return module
