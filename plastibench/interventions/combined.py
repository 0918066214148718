"""Combinations of interventions, such as ``l2-init+rnr``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.declarations import prefixed
from plastibench.config.options import build, field_name, options_of
from plastibench.config.registry import Entry
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.nn.network import Network


class Combined(Intervention):
    """Apply several interventions, in the order of their names.

    Options are prefixed with the name of their part: ``--intervention.l2-init.strength 0.001``. If parts evaluate a
    copy of the network, the copy of the last such part is evaluated.
    """

    entries: ClassVar[Mapping[str, Entry]] = {}

    def __post_init__(self) -> None:
        self.parts: dict[str, Intervention] = {
            name: build(entry.load(), self._options(name), f"intervention {name}")
            for name, entry in self.entries.items()
        }

    def _options(self, name: str) -> dict[str, Any]:
        prefix = f"{field_name(name)}__"
        given = {field: getattr(self, field) for field in options_of(type(self)) if field.startswith(prefix)}
        return {field.removeprefix(prefix): value for field, value in given.items()}

    def wrapped(self) -> tuple[Intervention, ...]:
        """Return the parts."""
        return tuple(self.parts.values())

    def prepare(self, network: Network) -> None:
        """Prepare every part."""
        for part in self.parts.values():
            part.prepare(network)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """Sum the penalties of all parts."""
        found = [part.penalty(network, batch) for part in self.parts.values()]
        terms = [term for term in found if term is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def before_update(self, network: Network) -> None:
        """Forward to every part."""
        for part in self.parts.values():
            part.before_update(network)

    def after_update(self, network: Network) -> None:
        """Forward to every part."""
        for part in self.parts.values():
            part.after_update(network)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Apply the parts one after another."""
        report = Report()
        for part in self.parts.values():
            report.add(part.intervene(network, batch))
        return report

    def evaluated(self, network: Network) -> nn.Module:
        """Return the evaluated copy of the last part that has one, or else the network's module."""
        slow = [part for part in self.parts.values() if overrides(part, "evaluated")]
        return slow[-1].evaluated(network) if slow else network.module

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of every part."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def combine(entries: Mapping[str, Entry]) -> type:
    """Create a class with the options of all parts, each prefixed with the name of its part.

    Args:
        entries: The parts by name, in the order in which they act.
    """
    fields = [each for name, entry in entries.items() for each in prefixed(name, entry.load(), entry.defaults)]
    return dataclasses.make_dataclass("Combined", fields, bases=(Combined,), namespace={"entries": entries})
