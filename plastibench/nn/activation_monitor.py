"""Measure the activations of hidden units during training passes, without an extra forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.architecture import Architecture
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer, set_outgoing
from plastibench.nn.units import unit_count, unit_rows
from plastibench.utils import distributed

Measure = Callable[[TracedLayer, Tensor, Tensor], Tensor]
Means = tuple[Tensor, int]  # means over rows, [k, H], and the number of rows


class ActivationMonitor:
    """Measures the activations of hidden units, as their first reader receives them, in training passes.

    A pass counts if the module is in train mode, gradients are recorded, and :meth:`confirm` is called before the next
    pass. Evaluation, acting and the passes of other interventions do not count, and neither does an actor's loss that
    runs through a critic. Passes whose gradients are accumulated count together.

    Attributes:
        layers: The hidden layers, their readers, and the layers that form neurons with either. Empty before the first
            :meth:`confirm`.
    """

    def __init__(self, network: Network, measure: Measure) -> None:
        """Monitor a network.

        Args:
            network: The network.
            measure: Maps a hidden layer, the input of its reader [rows, in] and the unit of each column [in] to means
                over the rows. [k, in]. Activations are detached.
        """
        self.network, self._measure = network, measure
        self.layers: list[TracedLayer] = []
        self._unconfirmed: dict[str, Means] = {}  # the latest pass since confirm()
        self._confirmed: dict[str, Means] = {}  # passes since pop_means()
        self._updates_without_pass = 0
        self._architecture = Architecture(network.module)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def confirm(self, batch: TensorDictBase) -> bool:
        """Count the latest pass as a training pass; call it from ``penalty``, after every forward pass.

        The first call finds the hidden layers, which are monitored from the next pass on. They are found again if
        layers were added, replaced or enlarged since.

        Returns:
            Whether the hidden layers were found now.

        Raises:
            UserError: The network has no hidden units.
        """
        if not self.layers or not self._architecture.unchanged():
            self._begin(batch)
            return True
        for name, new in self._unconfirmed.items():
            self._confirmed[name] = _pooled(self._confirmed[name], new) if name in self._confirmed else new
        self._unconfirmed = {}
        return False

    def pop_means(self) -> dict[str, Tensor]:
        """Means over all rows of the passes of an update, [k, H] by layer; call it from ``after_update``.

        Rows are those of all processes. Empty in the update in which the layers are found, because its pass ran before
        they were known.
        """
        means, self._confirmed, self._unconfirmed = _over_processes(self._confirmed), {}, {}
        self._updates_without_pass += not means
        if self._updates_without_pass == 2:
            print(
                f"plastibench: no training forward pass of the {self.network.role} was observed; run its module in "
                "train mode, and compute the penalty after each forward pass",
                file=sys.stderr,
            )
        return {name: values for name, (values, _) in means.items()}

    @property
    def hidden(self) -> list[TracedLayer]:
        """The monitored layers."""
        return [layer for layer in self.layers if layer.activated]

    def state_dict(self) -> dict[str, Any]:
        """Which layers read which units, so that a resumed run monitors its very first pass."""
        columns = {layer.name: dict(layer.columns) for layer in self.layers}
        norms = {layer.name: layer.batch_norms for layer in self.layers}
        return {"columns": columns, "hidden": [layer.name for layer in self.hidden], "norms": norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict` and start to monitor."""
        found = {name: self.network.module.get_submodule(name) for name in state["columns"]}
        layers = [
            TracedLayer(name, module, columns=state["columns"][name], batch_norms=state["norms"][name])
            for name, module in found.items()
        ]
        self._attach(layers, set(state["hidden"]))

    def _begin(self, batch: TensorDictBase) -> None:
        traced = {layer.name: layer for layer in trace(self.network, batch)}
        hidden = [layer for layer in traced.values() if layer.hidden and layer.trained]
        if not hidden:
            raise UserError("no hidden units to monitor: none are trained, activated, and read by known layers")
        concerned = {name for layer in hidden for name in (layer.name, *layer.readers, *layer.outgoing)}
        for layer in traced.values():  # a unit of a hidden LayerNorm and the row that it normalizes are one neuron
            if any(isinstance(traced[reader].module, nn.LayerNorm) for reader in layer.readers if reader in concerned):
                concerned.add(layer.name)
        self._attach([layer for name, layer in traced.items() if name in concerned], {layer.name for layer in hidden})

    def _attach(self, layers: list[TracedLayer], hidden: set[str]) -> None:
        for handle in self._hooks:
            handle.remove()
        self._unconfirmed, self._confirmed, self._updates_without_pass = {}, {}, 0
        self._architecture = Architecture(self.network.module)
        modules = {layer.name: layer.module for layer in layers}
        for layer in layers:
            layer.activated = layer.name in hidden
            layer.columns = {name: columns for name, columns in layer.columns.items() if name in modules}
            if layer.activated:
                self._hooks.append(modules[layer.readers[0]].register_forward_pre_hook(self._hook(layer)))
        set_outgoing(layers)
        self.layers = layers
        begin_pass = torch.compiler.disable(self._begin_pass)
        self._hooks.append(self.network.module.register_forward_pre_hook(begin_pass))
        if "torch._dynamo" in sys.modules:  # code that is already compiled ignores new hooks
            torch.compiler.reset()

    def _begin_pass(self, module: nn.Module, args: Any) -> None:
        """Drop a pass that no :meth:`confirm` has followed: it belonged to another network's loss."""
        if module.training and torch.is_grad_enabled():
            self._unconfirmed = {}

    def _hook(self, layer: TracedLayer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        columns = layer.columns[layer.readers[0]] = layer.columns[layer.readers[0]].to(self.network.device)

        def measure(reader: nn.Module, args: tuple[Any, ...]) -> None:
            if reader.training and torch.is_grad_enabled():
                values = args[0].detach()
                values = values.float() if values.itemsize < 4 else values  # under autocast
                rows = unit_rows(reader, values)
                with torch.no_grad():
                    new = mean_per_unit(layer, columns, self._measure(layer, rows, columns)), len(rows)
                earlier = self._unconfirmed.get(layer.name)
                self._unconfirmed[layer.name] = new if earlier is None else _pooled(earlier, new)

        hook: Callable[[nn.Module, tuple[Any, ...]], None] = torch.compiler.disable(measure)
        return hook


def mean_per_unit(layer: TracedLayer, columns: Tensor, values: Tensor) -> Tensor:
    """Average the columns of each unit, which all have equally many: [..., in] -> [..., H]."""
    count = unit_count(layer.module)
    return values.new_zeros(*values.shape[:-1], count).index_add_(-1, columns, values) * (count / len(columns))


def _over_processes(means: dict[str, Means]) -> dict[str, Means]:
    """Means over the rows of all processes."""
    if distributed.world_size() == 1:
        return means
    sums = {name: values * rows for name, (values, rows) in means.items()}
    counts = torch.tensor([rows for _, rows in means.values()], dtype=torch.float64)
    distributed.all_reduce_sum([*sums.values(), counts])
    return {name: (sums[name] / count, int(count)) for name, count in zip(means, counts.tolist(), strict=True)}


def _pooled(one: Means, other: Means) -> Means:
    """Means over the rows of both."""
    rows = one[1] + other[1]
    return one[0].lerp(other[0], other[1] / rows), rows
