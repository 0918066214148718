"""See what hidden units do in the training passes themselves, without a pass of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.errors import UserError
from plastibench.layers.trace import Traced, trace
from plastibench.layers.units import unit_count
from plastibench.network import Network

Seen = Callable[[Traced, Tensor, Tensor], None]


class Watch:
    """Reports the activations of hidden units as their readers receive them, in passes that are trained on.

    A pass counts when the module is in train mode and gradients are recorded; evaluation, acting and the passes of
    other interventions are none. An actor's loss that runs through a critic counts for the critic, too.

    Attributes:
        units: The hidden units and their readers; empty before :meth:`begin`.
    """

    def __init__(self, network: Network, seen: Seen) -> None:
        """Watch a network.

        Args:
            network: The network.
            seen: Called with a unit's module, what its reader received [rows, in], and the unit that each column
                holds [in]. Activations are detached.
        """
        self.network, self._seen = network, seen
        self.units: list[Traced] = []

    def begin(self, batch: TensorDictBase) -> None:
        """Find the hidden units, and see them from the next pass on.

        Raises:
            UserError: There are none.
        """
        traced = {unit.name: unit for unit in trace(self.network, batch)}
        hidden = [unit for unit in traced.values() if unit.hidden]
        if not hidden:
            raise UserError("this network has no hidden units (activated, and read by known modules) to watch")
        concerned = {name for unit in hidden for name in (unit.name, *unit.readers)}
        for unit in traced.values():  # a hidden LayerNorm's unit is one neuron with the row that it normalises
            if any(isinstance(traced[reader].module, nn.LayerNorm) for reader in unit.readers if reader in concerned):
                concerned.add(unit.name)
        self._attach([unit for name, unit in traced.items() if name in concerned], {unit.name for unit in hidden})

    @property
    def hidden(self) -> list[Traced]:
        """The units that are watched."""
        return [unit for unit in self.units if unit.activated]

    def state_dict(self) -> dict[str, Any]:
        """Who reads whom, so that a resumed run sees its very first pass."""
        columns = {unit.name: dict(unit.columns) for unit in self.units}
        norms = {unit.name: unit.batch_norms for unit in self.units}
        return {"columns": columns, "hidden": [unit.name for unit in self.hidden], "norms": norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, and go on watching."""
        found = {name: self.network.module.get_submodule(name) for name in state["columns"]}
        units = [
            Traced(name, module, columns=state["columns"][name], batch_norms=state["norms"][name])
            for name, module in found.items()
        ]
        self._attach(units, set(state["hidden"]))

    def _attach(self, units: list[Traced], hidden: set[str]) -> None:
        modules = {unit.name: unit.module for unit in units}
        for unit in units:
            unit.activated = unit.name in hidden
            unit.columns = {name: columns for name, columns in unit.columns.items() if name in modules}
            if unit.activated:
                modules[unit.readers[0]].register_forward_pre_hook(self._hook(unit))
        self.units = units

    def _hook(self, unit: Traced) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        columns = unit.columns[unit.readers[0]] = unit.columns[unit.readers[0]].to(self.network.device)

        def see(reader: nn.Module, args: tuple[Any, ...]) -> None:
            if reader.training and torch.is_grad_enabled():
                values = args[0].detach()
                values = values.float() if values.itemsize < 4 else values  # under autocast
                rows = values.movedim(1, -1) if isinstance(reader, nn.Conv2d) else values
                self._seen(unit, rows.flatten(0, -2), columns)

        return see


def per_unit(unit: Traced, columns: Tensor, values: Tensor) -> Tensor:
    """Means over the columns of each unit, which all have equally many: [in] -> [H]."""
    count = unit_count(unit.module)
    return values.new_zeros(count).index_add_(0, columns, values) * (count / len(values))


def whole_neurons(units: list[Traced], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks, and with those of a LayerNorm the same ones of the module whose outputs it normalises."""
    found = dict(masks)
    for unit in units:
        for reader in unit.readers:
            if reader in masks and not unit.activated and len(masks[reader]) == unit_count(unit.module):
                found[unit.name] = masks[reader]
    return found
