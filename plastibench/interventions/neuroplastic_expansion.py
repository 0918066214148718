"""Neuroplastic Expansion: grow a sparse network where gradients are large (Liu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import reset_state
from plastibench.nn.units import has_units, tied_parameters


@register_intervention("neuroplastic-expansion")
@dataclass
class NeuroplasticExpansion(Intervention):
    """Start sparse, then grow connections with large gradients and prune small weights (Liu et al. 2025).

    Every ``every`` updates, in each weight matrix of Linear and Conv modules: the fraction ``grow`` of the missing
    connections, those with the largest summed gradient, is added with zero weights. ``prune`` times as many of the
    smallest weights are removed. Initial densities follow Erdős–Rényi, (in + out)/(in·out), so that narrow matrices are
    denser.

    Follows torressliu/neuroplastic-expansion, except for its experience review, which samples older transitions and
    belongs to the replay buffer. Missing connections are masked, so a sparse network is not faster. Memory: a mask and
    a gradient sum per weight.
    """

    kind = "optimizer"
    extra_memory = 1.23  # copies of the parameters of vit-nano

    sparsity: float = option(0.8, "fraction of connections that are missing at the start", low=0, high=0.99)
    every: int = option(100, "updates between changes of connections", low=1)
    grow: float = option(0.008, "fraction of the missing connections to add each time", low=0, high=1)
    prune: float = option(0.4, "connections to remove, as a multiple of those added", low=0, high=1)

    def __post_init__(self) -> None:
        self._updates = 0
        self._masks: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}  # sums of dense gradients since the last change

    def prepare(self, network: Network) -> None:
        """Draw the initial connections, and remove all others from the network and its replicas."""
        matrices = _matrices(network.module)
        densities = erdos_renyi({name: tuple(p.shape) for name, p in matrices.items()}, 1 - self.sparsity)
        for name, parameter in matrices.items():
            drawn = torch.rand(parameter.shape, generator=network.generator)
            count = max(1, round(densities[name] * parameter.numel()))
            mask = torch.zeros(parameter.numel(), dtype=torch.bool)
            mask[drawn.flatten().topk(count).indices] = True
            self._masks[name] = mask.view_as(parameter).to(parameter.device)
            self._wanted[name] = torch.zeros_like(parameter)
        network.rebuild(self._thin)

    @torch.no_grad()
    def before_update(self, network: Network) -> None:
        """Sum the gradients, and mask those of missing connections."""
        for name, parameter in _matrices(network.module).items():
            if parameter.grad is not None and name in self._masks:
                self._wanted[name] += parameter.grad
                parameter.grad.mul_(self._masks[name])

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Keep the network sparse. Grow and prune if due."""
        self._thin(network.module)
        self._updates += 1
        if self._updates % self.every == 0:
            for name, parameter in _matrices(network.module).items():
                if name in self._masks:
                    self._change(network, name, parameter)

    def state_dict(self) -> dict[str, Any]:
        """Return connections and gradient sums."""
        return {"masks": self._masks, "wanted": self._wanted, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore connections and gradient sums."""
        for name, mask in self._masks.items():
            mask.copy_(state["masks"][name])
            self._wanted[name].copy_(state["wanted"][name])
        self._updates = state["updates"]

    @torch.no_grad()
    def _thin(self, module: nn.Module) -> None:
        for name, parameter in _matrices(module).items():
            if name in self._masks:
                parameter.mul_(self._masks[name].to(parameter.device))

    def _change(self, network: Network, name: str, parameter: nn.Parameter) -> None:
        mask, wanted = self._masks[name], self._wanted[name]
        free = int((~mask).sum())
        grown = int(self.grow * free)
        pruned = min(int(self.prune * grown), int(mask.sum()) - 1)
        changed = torch.zeros_like(mask)
        if pruned > 0:
            weakest = parameter.abs().masked_fill(~mask, torch.inf).flatten().topk(pruned, largest=False).indices
            changed.view(-1)[weakest] = True
        if grown:
            strongest = wanted.abs().masked_fill(mask, -1.0).flatten().topk(grown).indices
            changed.view(-1)[strongest] = True
        parameter.masked_fill_(changed, 0.0)
        mask ^= changed
        reset_state(network.optimizer, parameter, changed, "zero")
        wanted.zero_()


def erdos_renyi(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Return densities proportional to (in + out)/(in·out), at most 1, with ``density`` as their overall density."""
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {name: (shape[0] + sizes[name] / shape[0]) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = max(left, 0.0) / max(sum(raw[name] * sizes[name] for name in shapes if name not in dense), 1e-12)
        full = {name for name in shapes if name not in dense and scale * raw[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= full


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of every Linear and Conv module that are not tied to another module."""
    shared = tied_parameters(module)
    return {
        f"{name}.weight".lstrip("."): child.weight
        for name, child in module.named_modules()
        if has_units(child)
        and not isinstance(child, nn.LayerNorm)
        and isinstance(child.weight, nn.Parameter)
        and child.weight not in shared
    }
