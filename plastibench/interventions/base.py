"""The interface that every intervention shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.network import Network


@dataclass
class Report:
    """What an intervention did to one network.

    Attributes:
        units: Module name to mask [H] of the units that were re-drawn.
        parameters: How many scalars were re-drawn, shrunk or refitted.
        modules: Module name to figures worth recording (``revived``, ``residual``, ``norm_ratio``).
        seconds: Wall-clock time; filled in by whoever called.
    """

    units: dict[str, Tensor] = field(default_factory=dict)
    parameters: int = 0
    modules: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        """Take in what another intervention did to the same network."""
        for name, mask in other.units.items():
            self.units[name] = self.units[name] | mask if name in self.units else mask
        self.parameters += other.parameters
        for module, figures in other.modules.items():
            self.note(module, **figures)

    def note(self, module: str, **figures: float) -> None:
        """Record figures of one module."""
        self.modules.setdefault(module, {}).update(figures)

    @property
    def revived_share(self) -> float:
        """Share of units re-drawn, among all modules whose units were examined; 0 where none were."""
        total = sum(mask.numel() for mask in self.units.values())
        return sum(int(mask.sum()) for mask in self.units.values()) / total if total else 0.0


class Intervention:
    """Anything that keeps a network trainable. One instance serves one network.

    A subclass is a dataclass whose fields (made with :func:`plastibench.config.options.option`) are its options, and
    overrides one or two of the hooks below; each does nothing by default. Hooks edit tensors in place, draw random
    numbers from ``network.generator`` only, and leave gradients and train/eval modes as they found them.
    """

    def prepare(self, network: Network) -> None:
        """Called once before training: keep copies of initial weights, ``network.rebuild`` the architecture."""

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """A scalar added to the network's loss at every update, or None."""
        return None

    def before_update(self, network: Network) -> None:
        """Called before every optimizer step, when gradients are there (and clipped)."""

    def after_update(self, network: Network) -> None:
        """Called after every optimizer step; the gradients are still there."""

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Act on the network: at task switches or every r updates, as the run's schedule says.

        Args:
            network: The network.
            batch: A large representative batch of the data to come, with labels or transitions.
        """
        return Report()

    def evaluated(self, network: Network) -> nn.Module:
        """The module whose outputs are evaluated: the network's own, or a slow copy of it."""
        return network.module

    def wrapped(self) -> tuple[Intervention, ...]:
        """Interventions to which the class that defines this forwards the hooks that it defines; none by default."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""


def overrides(intervention: Intervention, hook: str) -> bool:
    """Whether the intervention, or one that it forwards to, gives the hook a body, so that a hot loop may skip it."""
    kind = type(intervention)
    body = getattr(kind, hook)
    if any(vars(cls).get(hook) is body for cls in kind.__mro__ if "wrapped" in vars(cls)):
        return any(overrides(part, hook) for part in intervention.wrapped())
    return True
