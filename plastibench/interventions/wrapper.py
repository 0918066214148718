"""An intervention around another one: what Recouple, Distil and Rehearse share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import build, option
from plastibench.config.registry import interventions
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network


@dataclass
class Wrapper(Intervention):
    """Every hook is the inner intervention's; a subclass adds to ``intervene``."""

    inner: str | Intervention = option("redo", "the intervention that acts first: a registered name")
    inner_options: tuple[str, ...] = option((), "options of the inner intervention: tau=0.2,modules=all")

    def __post_init__(self) -> None:
        if isinstance(self.inner, Intervention):
            self._inner = self.inner
            self.inner = type(self._inner).__name__
            return
        entry = interventions[self.inner]
        pairs = [text.partition("=") for text in self.inner_options]
        values = {**entry.defaults, **{name: value for name, _, value in pairs}}
        self._inner = build(entry.load(), values, f"intervention {self.inner}, inside {type(self).__name__.lower()}")

    def wrapped(self) -> tuple[Intervention, ...]:
        """The inner intervention."""
        return (self._inner,)

    def prepare(self, network: Network) -> None:
        """Prepare the inner intervention."""
        self._inner.prepare(network)

    def before_update(self, network: Network) -> None:
        """Forward to the inner intervention."""
        self._inner.before_update(network)

    def after_update(self, network: Network) -> None:
        """Forward to the inner intervention."""
        self._inner.after_update(network)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """The inner intervention's penalty."""
        return self._inner.penalty(network, batch)

    def evaluated(self, network: Network) -> nn.Module:
        """What the inner intervention evaluates."""
        return self._inner.evaluated(network)

    def state_dict(self) -> dict[str, Any]:
        """The inner intervention's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the inner intervention's state."""
        self._inner.load_state_dict(state)
