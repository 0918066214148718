"""Base class of Recouple, Distil and Rehearse, which apply another intervention first."""

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
    """Forward every hook to an inner intervention. Subclasses override ``intervene``."""

    inner: str | Intervention = option("redo", "name of the inner intervention, which acts first", names="intervention")
    inner_options: tuple[str, ...] = option((), "options of the inner intervention, e.g. tau=0.2,modules=all")

    def __post_init__(self) -> None:
        if isinstance(self.inner, Intervention):
            self._inner = self.inner
            self.inner = type(self._inner).__name__
            return
        entry = interventions[self.inner]
        pairs = [text.partition("=") for text in self.inner_options]
        values = {name: value for name, _, value in pairs}
        where = f"intervention {self.inner} (inside {type(self).__name__.lower()})"
        self._inner = build(entry.load(), values, where, entry.defaults)

    def wrapped(self) -> tuple[Intervention, ...]:
        """Return the inner intervention."""
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
        """Forward to the inner intervention."""
        return self._inner.penalty(network, batch)

    def evaluated(self, network: Network) -> nn.Module:
        """Forward to the inner intervention."""
        return self._inner.evaluated(network)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner intervention."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the inner intervention."""
        self._inner.load_state_dict(state)
