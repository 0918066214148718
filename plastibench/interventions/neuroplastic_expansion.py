"""Neuroplastic Expansion: grow a sparse network where gradients are large (Liu et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
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

    The weight matrices of Linear and Conv modules start with the fraction ``1 - sparsity`` of their connections, those
    with the largest weights. Initial densities follow Erdős–Rényi: proportional to the sum of the axes of a matrix,
    divided by its size, so that narrow matrices are denser. Every ``every`` updates, in each matrix of n weights:

    - while more than ``final`` of all connections are missing: ``grow·(sparsity·n - initial connections)`` connections
      are added, and ``prune`` times as many are removed;
    - afterwards: the fraction ``turnover`` of the connections is removed, and as many are added.

    The smallest weights are removed. Then the missing connections (including those just removed) with the largest
    gradient in the last update are added, with zero weights.

    Follows torressliu/neuroplastic-expansion, which also uses ``final=0.25``. Differences: the source skips the
    optimizer step of an update that changes connections; it also masks the scales of norms; turnover falls to 0 along a
    cosine over the run (here over ``horizon`` updates, if set); and its experience review, which samples older
    transitions, belongs to the replay buffer. Missing connections are masked, so a sparse network is not faster.

    Matrices that are added or change their shape later, such as a head for more classes, stay dense.
    """

    kind = "optimizer"
    extra_memory = 0.25  # copies of the parameters of vit-nano

    sparsity: float = option(0.8, "fraction of connections that are missing at the start", low=0, high=0.99)
    every: int = option(100, "updates between changes of connections", low=1)
    grow: float = option(
        0.008, "connections to add each time, as a fraction of the initially missing connections", low=0, high=1
    )
    prune: float = option(0.4, "connections to remove during growth, as a multiple of those added", low=0, high=1)
    final: float = option(0.25, "fraction of missing connections at which growth ends", low=0, high=1)
    turnover: float = option(0.2, "after growth: fraction of connections to exchange each time", low=0, high=1)
    horizon: int = option(0, "updates over which turnover decays to 0 along a cosine; 0: constant turnover", low=0)
    start: Literal["largest", "random"] = option("largest", "initial connections: the largest weights, or random ones")

    def __post_init__(self) -> None:
        self._updates = 0
        self._ended = -1  # update at which growth ended
        self._masks: dict[str, Tensor] = {}
        self._grown: dict[str, int] = {}  # connections to add each time during growth
        self._gradients: dict[str, Tensor] = {}  # gradients of the update that changes connections

    @torch.no_grad()
    def prepare(self, network: Network) -> None:
        """Choose the initial connections, and remove all others from the network and its replicas.

        Raises:
            UserError: The network has no weight matrix.
        """
        matrices = {n: p for n, p in _matrices(network.module).items() if p.requires_grad or network.is_replica}
        if not matrices:
            raise UserError(
                f"neuroplastic-expansion: {type(network.module).__name__} has no Linear or Conv module with a "
                "trained weight of its own (not tied, not computed from other parameters)"
            )
        densities = erdos_renyi({name: tuple(p.shape) for name, p in matrices.items()}, 1 - self.sparsity)
        for name, parameter in matrices.items():
            scores = parameter.abs().float()
            if self.start == "random":
                scores = torch.rand(parameter.shape, generator=network.generator).to(parameter.device)
            count = max(1, round(densities[name] * parameter.numel()))
            self._masks[name] = _top(scores, count)
            self._grown[name] = int(max(0.0, self.grow * (self.sparsity * parameter.numel() - count)))
        network.rebuild(self._thin)

    @torch.no_grad()
    def before_update(self, network: Network) -> None:
        """Keep the gradients if connections change in this update, and mask those of missing connections."""
        matrices = _matrices(network.module)
        for name in [
            name for name, mask in self._masks.items() if name in matrices and not _fits(mask, matrices[name])
        ]:
            del self._masks[name]
        for name, parameter in matrices.items():
            if parameter.grad is not None and name in self._masks:
                if (self._updates + 1) % self.every == 0:
                    self._gradients[name] = parameter.grad.abs().float()
                parameter.grad.mul_(self._masks[name])

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Keep the network sparse. Grow and prune if due."""
        self._thin(network.module)
        self._updates += 1
        if self._updates % self.every:
            return
        if self._ended < 0 and self.missing() <= self.final:
            self._ended = self._updates
        for name, parameter in _matrices(network.module).items():
            if name in self._gradients:
                self._change(network, name, parameter)
        self._gradients = {}

    def missing(self) -> float:
        """Return the fraction of all connections that are missing."""
        total = sum(mask.numel() for mask in self._masks.values())
        return 1 - sum(int(mask.sum()) for mask in self._masks.values()) / max(total, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the connections."""
        return {"masks": self._masks, "updates": self._updates, "ended": self._ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the connections. Older checkpoints do not contain the end of growth."""
        saved = state["masks"]
        self._masks = {name: mask.copy_(saved[name]) for name, mask in self._masks.items() if name in saved}
        self._updates, self._ended = state["updates"], state.get("ended", -1)

    @torch.no_grad()
    def _thin(self, module: nn.Module) -> None:
        for name, parameter in _matrices(module).items():
            if name in self._masks and _fits(self._masks[name], parameter):
                parameter.mul_(self._masks[name].to(parameter.device))

    def _change(self, network: Network, name: str, parameter: nn.Parameter) -> None:
        before, gradients = self._masks[name], self._gradients[name]
        held = int(before.sum())
        if self._ended < 0:
            grown = self._grown[name]
            pruned = int(self.prune * grown)
        else:
            grown = pruned = int(self._turnover() * held)
        kept = before & _top(parameter.abs().float().masked_fill(~before, -1.0), max(1, held - pruned))
        added = ~kept & _top(gradients.masked_fill(kept, -1.0), min(grown, int((~kept).sum())))
        mask = kept | added
        changed = mask ^ before
        parameter.masked_fill_(changed, 0.0)
        self._masks[name] = mask
        reset_state(network.optimizer, parameter, changed, "zero")

    def _turnover(self) -> float:
        if not self.horizon:
            return self.turnover
        over = min(1.0, (self._updates - self._ended) / self.horizon)
        return self.turnover / 2 * (1 + math.cos(math.pi * over))


def _fits(mask: Tensor, parameter: Tensor) -> bool:
    return mask.shape == parameter.shape


def _top(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` largest scores."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count).indices] = True
    return mask.view_as(scores)


def erdos_renyi(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Return densities proportional to sum(shape)/prod(shape), at most 1, with ``density`` as their overall density."""
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
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
