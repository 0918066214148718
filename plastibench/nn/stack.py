"""Networks of one architecture, updated side by side: one batched forward and backward pass for all of them.

Small networks spend most of an update outside of their matrix products, so ten runs in one pass take little more time
than one. Every network keeps its own module, optimizer and attached interventions: parameters are gathered before the
forward pass, and each network receives its part of the gradients. Nothing that edits a network needs to know about it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim.adam import adam

from plastibench.nn.network import Network

# Layers that treat every element alike, so that a stack of batches can pass through the layer of the first network.
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Identity)


class Stackable:
    """A network that can be stacked with others, and the facts that this depends on.

    Attributes:
        network: The network.
        layers: The layers of its module, in order.
        key: Equal for networks that can be stacked.
    """

    def __init__(self, network: Network, layers: Sequence[Any], watched: Sequence[nn.Module]) -> None:
        self.network, self.layers = network, layers
        self.key: Hashable = (tuple((type(layer), repr(layer)) for layer in layers), str(network.device))
        self._watched = watched
        self._seen = network.rebuilds, network.optimizer

    def is_current(self) -> bool:
        """Whether the network is unchanged; if not, call :func:`stackable` again."""
        return self._seen == (self.network.rebuilds, self.network.optimizer) and not any(map(_has_hooks, self._watched))


def stackable(
    network: Network, parts: Sequence[nn.Module] | None = None, watched: Sequence[nn.Module] = ()
) -> Stackable | None:
    """Describe a network for stacking, or return None if it cannot be stacked.

    It can be stacked if its module is a chain of Linear layers, elementwise activations and Flatten, all of its
    parameters are trained, and nothing (such as a method that tracks units) hooks into its forward pass.

    Args:
        network: The network.
        parts: The parts of its module that form the chain, in order; the caller applies the others, which must have no
            parameters. By default, the module itself is the chain.
        watched: Further modules that must have no forward hooks, such as a target network.
    """
    layers, parameters = chain(*(parts or [network.module])), [*network.module.parameters()]
    groups = [] if network.optimizer is None else network.optimizer.param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    if layers is None or not all(p.requires_grad for p in parameters) or trained != {*map(id, parameters)}:
        return None
    modules = [each for root in (network.module, *watched) for each in root.modules()]
    return None if any(map(_has_hooks, modules)) else Stackable(network, layers, modules)


def chain(*modules: nn.Module) -> list[Any] | None:
    """The layers of modules that follow each other, in order; None if they are not a chain that can be stacked."""
    found: list[Any] = []
    for module in modules:
        if type(module) is nn.Sequential:
            layers = chain(*module)
            if layers is None:
                return None
            found += layers
        elif _is_flat(module) or type(module) in (nn.Linear, *_ELEMENTWISE):
            found.append(module)
        else:
            return None
    return found


class StackedLayers:
    """Chains of S networks with the same :attr:`Stackable.key`, evaluated side by side with their current weights."""

    def __init__(self, chains: Sequence[Sequence[Any]], *, trained: bool = False) -> None:
        """Gather the weights.

        Args:
            chains: The layers of each network.
            trained: Whether gradients with respect to the gathered weights are needed.
        """
        self.gathered: list[tuple[list[nn.Parameter], Tensor]] = []  # parameters of all networks, and a copy [S, ...]
        self._layers: list[tuple[Any, Tensor | None, Tensor | None]] = []
        for row in zip(*chains, strict=True):  # the layers of all networks at a depth
            weight = bias = None
            if isinstance(row[0], nn.Linear):
                weight = self._gather([layer.weight for layer in row], trained)
                bias = None if row[0].bias is None else self._gather([layer.bias for layer in row], trained)
            self._layers.append((row[0], weight, bias))

    def __call__(self, x: Tensor) -> Tensor:
        """Pass each network's batch through it: [S, B, ...] -> [S, B, K]."""
        for layer, weight, bias in self._layers:
            if weight is not None:
                x = _Linear.apply(x, weight, bias)
            else:
                x = x.flatten(2) if isinstance(layer, nn.Flatten) else layer(x)
        return x

    def _gather(self, parameters: list[nn.Parameter], trained: bool) -> Tensor:
        with torch.no_grad():
            gathered = torch.stack(list[Tensor](parameters)).requires_grad_(trained)
        self.gathered.append((parameters, gathered))
        return gathered


class NetworkStack(StackedLayers):
    """Networks with the same :attr:`Stackable.key`, which are updated together once."""

    def __init__(self, members: Sequence[Stackable]) -> None:
        super().__init__([member.layers for member in members], trained=True)
        self.networks = [member.network for member in members]

    def update(self, losses: Tensor, batch_of: Callable[[int], TensorDictBase]) -> Tensor:
        """Take one optimizer step with every network; the counterpart of :meth:`Network.update`.

        Args:
            losses: Loss of each network on its batch, computed from the latest outputs. [S]
            batch_of: Returns the batch of a network by its index, for penalties.

        Returns:
            Gradient norm of each network, before clipping. [S]
        """
        gradients = torch.autograd.grad(losses.sum(), [gathered for _, gathered in self.gathered])
        for (parameters, _), gradient in zip(self.gathered, gradients, strict=True):
            for parameter, part in zip(parameters, gradient.unbind(), strict=True):
                parameter.grad = part  # a view: what penalties and clipping change below is the same memory
        for index, network in enumerate(self.networks):
            for hook in network.attached:
                penalty = hook.penalty_for(batch_of(index)) if hook.has_penalty else None
                if isinstance(penalty, Tensor) and penalty.requires_grad:  # it may be a constant
                    penalty.backward(inputs=[*network.module.parameters()])
        parts = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norms = torch.linalg.vector_norm(torch.stack(parts, 1), dim=1)
        self._clip(gradients, norms)
        self._step()
        return norms

    def _clip(self, gradients: Sequence[Tensor], norms: Tensor) -> None:
        limits = [network.clip or math.inf for network in self.networks]
        if min(limits) == math.inf:
            return
        limit = limits[0] if len({*limits}) == 1 else torch.tensor(limits, device=norms.device)
        factors = ((norms + 1e-6).reciprocal() * limit).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    @torch.no_grad()
    def _step(self) -> None:
        """Step every optimizer; those that are Adam or AdamW with the same options in one call."""
        alike: dict[Hashable, list[Network]] = {}
        for network in self.networks:
            alike.setdefault(_adam_options(network), []).append(network)
        for options, group in alike.items():
            if options is None:
                for network in group:
                    network.optimizer.step()  # type: ignore[union-attr]
                continue
            for network in group:
                network.before_step()
            _step_adam(group)
            for network in group:
                network.after_step()


def _is_flat(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _adam_options(network: Network) -> Hashable | None:
    """Options that optimizers must have in common to step in one call; None if this one steps by itself."""
    optimizer: Any = network.optimizer
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return None
    (group,) = optimizer.param_groups
    if len(optimizer.state) != len(group["params"]) or not group["fused"] or group["amsgrad"]:
        return None  # the first step creates the state
    options = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize")
    return tuple(group[name] for name in options)


def _step_adam(networks: Sequence[Network]) -> None:
    optimizers: list[Any] = [network.optimizer for network in networks]
    parameters = [p for optimizer in optimizers for p in optimizer.param_groups[0]["params"]]
    states = [optimizer.state[p] for optimizer in optimizers for p in optimizer.param_groups[0]["params"]]
    group = optimizers[0].param_groups[0]
    adam(
        parameters,
        [p.grad for p in parameters],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
        decoupled_weight_decay=group["decoupled_weight_decay"],
    )


class _Linear(torch.autograd.Function):
    """Linear layers of S networks. [S, B, n] -> [S, B, m].

    Both passes compute the products of ``nn.Linear`` in the same memory layout.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _products(x, weight.transpose(1, 2), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        inputs = _products(gradient, weight) if ctx.needs_input_grad[0] else None
        return inputs, _products(gradient.transpose(1, 2), x), gradient.sum(1) if ctx.has_bias else None


def _products(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix products ``a @ b + bias`` of S networks, with the bits of single products. [S, m, k] [S, k, n] [S, n].

    MKL returns the same bits for most shapes. Where it or another library does not, the products are computed one by
    one, so that a run does not depend on the runs beside it.
    """
    threads = torch.get_num_threads()
    if _is_exact(a.shape, a.stride(), b.shape, b.stride(), bias is not None, a.dtype, a.device, threads):
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias.unsqueeze(1), a, b)
    return _single_products(a, b, bias)


def _single_products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.stack([torch.mm(*pair) for pair in zip(a, b, strict=True)])
    return torch.stack([torch.addmm(*parts) for parts in zip(bias, a, b, strict=True)])


@functools.cache
def _is_exact(
    shape_a: torch.Size,
    stride_a: tuple[int, ...],
    shape_b: torch.Size,
    stride_b: tuple[int, ...],
    has_bias: bool,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
) -> bool:
    """Whether batched products of these shapes are bit-identical to single ones; tested once on random inputs."""
    draws = torch.Generator(device).manual_seed(0)
    a = torch.empty_strided(shape_a, stride_a, dtype=dtype, device=device).normal_(generator=draws)
    b = torch.empty_strided(shape_b, stride_b, dtype=dtype, device=device).normal_(generator=draws)
    bias = a.new_empty(shape_b[0], shape_b[2]).normal_(generator=draws) if has_bias else None
    batched = torch.bmm(a, b) if bias is None else torch.baddbmm(bias.unsqueeze(1), a, b)
    return torch.equal(batched, _single_products(a, b, bias))
