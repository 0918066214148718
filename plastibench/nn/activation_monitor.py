"""See what hidden units do in the training passes themselves, without a pass of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.dataflow import TracedLayer, follow_norms, trace
from plastibench.nn.network import Network
from plastibench.nn.units import unit_count

Measure = Callable[[TracedLayer, Tensor, Tensor], Tensor]
Seen = tuple[Tensor, int]  # means over rows, [k, H], and the number of rows


class ActivationMonitor:
    """Measures the activations of hidden units, as their first reader receives them, in passes that are trained on.

    A pass counts when the module is in train mode, gradients are recorded, and the network's penalty is asked for
    afterwards. Evaluation, acting and the passes of other interventions are none, nor is an actor's loss that runs
    through a critic. Passes whose gradients are accumulated count together.

    Attributes:
        units: The hidden units, their readers, and what else belongs to either; empty before the first :meth:`confirm`.
    """

    def __init__(self, network: Network, measure: Measure) -> None:
        """Watch a network.

        Args:
            network: The network.
            measure: From a unit's module, what its reader received [rows, in], and the unit that each column holds
                [in], to means over the rows. [k, H]. Activations are detached.
        """
        self.network, self._measure = network, measure
        self.units: list[TracedLayer] = []
        self._pass: dict[str, Seen] = {}  # since the penalty was last asked for
        self._seen: dict[str, Seen] = {}  # since take()
        self._blind = 0  # updates of which nothing was seen

    def confirm(self, batch: TensorDictBase) -> bool:
        """What was seen since the last call is trained on: call from ``penalty``.

        The first call finds the hidden units, which are seen from the next pass on.

        Returns:
            Whether this was that first call.

        Raises:
            UserError: There are none.
        """
        if not self.units:
            self._begin(batch)
            return True
        for name, new in self._pass.items():
            self._seen[name] = _together(self._seen[name], new) if name in self._seen else new
        self._pass = {}
        return False

    def take(self) -> dict[str, Tensor]:
        """Means over all rows of all passes of an update, [k, H] by module: call from ``after_update``.

        Nothing in the very first update, whose only pass ran before the units were known.
        """
        seen, self._seen, self._pass = self._seen, {}, {}
        self._blind += not seen
        if self._blind == 2:
            print(
                f"plastibench: no pass of the {self.network.role} can be watched that is trained on; run its module in "
                "train mode, and ask for the penalty after each forward pass",
                file=sys.stderr,
            )
        return {name: means for name, (means, _) in seen.items()}

    @property
    def hidden(self) -> list[TracedLayer]:
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
            TracedLayer(name, module, columns=state["columns"][name], batch_norms=state["norms"][name])
            for name, module in found.items()
        ]
        self._attach(units, set(state["hidden"]))

    def _begin(self, batch: TensorDictBase) -> None:
        traced = {unit.name: unit for unit in trace(self.network, batch)}
        hidden = [unit for unit in traced.values() if unit.hidden]
        if not hidden:
            raise UserError("this network has no hidden units (activated, and read by known modules) to watch")
        concerned = {name for unit in hidden for name in (unit.name, *unit.readers, *unit.outgoing)}
        for unit in traced.values():  # a hidden LayerNorm's unit is one neuron with the row that it normalises
            if any(isinstance(traced[reader].module, nn.LayerNorm) for reader in unit.readers if reader in concerned):
                concerned.add(unit.name)
        self._attach([unit for name, unit in traced.items() if name in concerned], {unit.name for unit in hidden})

    def _attach(self, units: list[TracedLayer], hidden: set[str]) -> None:
        modules = {unit.name: unit.module for unit in units}
        for unit in units:
            unit.activated = unit.name in hidden
            unit.columns = {name: columns for name, columns in unit.columns.items() if name in modules}
            if unit.activated:
                modules[unit.readers[0]].register_forward_pre_hook(self._hook(unit))
        follow_norms(units)
        self.units = units
        if "torch._dynamo" in sys.modules:  # what is compiled already takes no notice of new hooks
            torch.compiler.reset()

    def _hook(self, unit: TracedLayer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        columns = unit.columns[unit.readers[0]] = unit.columns[unit.readers[0]].to(self.network.device)

        def see(reader: nn.Module, args: tuple[Any, ...]) -> None:
            if reader.training and torch.is_grad_enabled():
                values = args[0].detach()
                values = values.float() if values.itemsize < 4 else values  # under autocast
                rows = (values.movedim(1, -1) if isinstance(reader, nn.Conv2d) else values).flatten(0, -2)
                with torch.no_grad():
                    new = per_unit(unit, columns, self._measure(unit, rows, columns)), len(rows)
                self._pass[unit.name] = _together(self._pass[unit.name], new) if unit.name in self._pass else new

        hook: Callable[[nn.Module, tuple[Any, ...]], None] = torch.compiler.disable(see)
        return hook


def per_unit(unit: TracedLayer, columns: Tensor, values: Tensor) -> Tensor:
    """Means over the columns of each unit, which all have equally many: [..., in] -> [..., H]."""
    count = unit_count(unit.module)
    return values.new_zeros(*values.shape[:-1], count).index_add_(-1, columns, values) * (count / len(columns))


def _together(one: Seen, other: Seen) -> Seen:
    """Means over the rows of both."""
    rows = one[1] + other[1]
    return one[0].lerp(other[0], other[1] / rows), rows
