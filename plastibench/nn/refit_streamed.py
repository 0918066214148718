"""Refit the layers of a network while the batch is streamed through it in chunks, so that less memory is needed.

Every chunk has a forward pass of its own. All passes halt at the same layer until it is refitted, so each of them holds
only what the network itself keeps at that point. Modules of a few layers, such as a block of a transformer, run again
from their inputs for each of their layers: a pass that halts in such a module holds its inputs, not the activations
inside it. The number of forward passes does not grow with depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.batches import chunks
from plastibench.nn.fitted_parameters import fitted_parameters, write_parameters
from plastibench.nn.halting import Halting
from plastibench.nn.least_squares import Fit, LayerNormFit, LinearFit, Solver, fit_for, has_closed_form
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.repeatable import cloned, repeatable_modules
from plastibench.nn.row_order import RowOrder, RowsMoved
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import apply_module, replaced_forwards, unit_parameters

Parameters = tuple[Tensor, Tensor | None]


@torch.no_grad()
def refit_streamed(
    network: Network,
    batch: TensorDictBase,
    layers: list[TracedLayer],
    before: dict[str, Parameters],
    revived: dict[str, Tensor],
    refitted: Callable[[str], bool],
    solver: Solver,
    order: RowOrder,
    chunk_size: int,
) -> dict[str, Fit]:
    """Refit all layers except the first, in execution order, with the sums of one layer at a time.

    The result is that of :func:`plastibench.nn.refit.refit_in_one_pass` up to rounding. Nothing is written before all
    layers are fitted. The arguments are those of :func:`plastibench.nn.refit.refit`, and the samples per chunk.

    Raises:
        RowsMoved: A layer received a different number of rows than in the test of the row order, or did not run.
    """
    wanted = [layer for layer in layers[1:] if layer.trained and refitted(layer.name) and has_closed_form(layer.module)]
    repeatable = repeatable_modules(network, batch, layers)
    passes = [_Pass(chunk, network) for chunk in chunks(batch, chunk_size)]
    stream = _Stream(before, order, wanted)
    fits: dict[str, Fit] = {}
    with as_evaluated(network.module), replaced_forwards(stream.forwards(layers, repeatable)):
        try:
            for layer in wanted:
                keep = revived.get(layer.name)
                fit = stream.collect(layer, passes).solve(solver, keep)
                weight, bias = stream.new[layer.name] = fitted_parameters(layer, fit, keep)
                fits[layer.name] = replace(fit, weight=weight, bias=bias)  # drops the copies in float64
        finally:
            for each in passes:
                each.close()
    for layer in wanted:
        write_parameters(network, layer, stream.new[layer.name])
    return fits


class _Pass(Halting):
    """The forward pass of a chunk and its copy: the first half has the old parameters, the second half the new ones.

    Attributes:
        samples: Samples of both halves.
        calls: Number of calls of each layer so far.
        repeats: A module runs that will run again.
        rows: Inputs and targets of the layer that is being refitted.
    """

    def __init__(self, chunk: TensorDictBase, network: Network) -> None:
        super().__init__(lambda: network.loss(network.module, torch.cat([chunk, chunk])), network.device)
        self.samples = 2 * len(chunk)
        self.calls = Counter[str]()
        self.repeats = False
        self.rows: tuple[Tensor, Tensor] | None = None


class _Reached(Exception):
    """Ends the run of a module at the layer that is being refitted."""


class _Stream:
    """Forward functions with which all passes halt when a layer has received its part of the batch.

    Attributes:
        new: The parameters of the layers that are already refitted.
    """

    def __init__(self, before: dict[str, Parameters], order: RowOrder, wanted: list[TracedLayer]) -> None:
        self.new: dict[str, Parameters] = {}
        self._before, self._order = before, order
        self._wanted = {layer.name for layer in wanted}
        self._target = ""
        self._running: _Pass

    def collect(self, layer: TracedLayer, passes: list[_Pass]) -> LinearFit | LayerNormFit:
        """Let all passes run until they reach a layer, and add its rows to a fit."""
        self._target, fit = layer.name, fit_for(layer.module)
        assert fit is not None
        for self._running in passes:
            if self._running.resume() != layer.name or self._running.rows is None:
                raise RowsMoved(layer.name)
            fit.add(*self._running.rows)  # here and not in the pass: MKL keeps buffers for each thread
            self._running.rows = None
        return fit

    def forwards(
        self, layers: list[TracedLayer], repeatable: dict[nn.Module, list[TracedLayer]]
    ) -> dict[nn.Module, Callable[..., Any]]:
        """Return the functions that replace those of layers and of modules that may run again."""
        found: dict[nn.Module, Callable[..., Any]] = {layer.module: partial(self._run, layer) for layer in layers}
        for module, inner in repeatable.items():
            names = [layer.name for layer in inner if layer.name in self._wanted]
            found[module] = partial(self._run_again, names, module.forward)
        return found

    def _run(self, layer: TracedLayer, inputs: Tensor) -> Tensor:
        running, axis = self._running, layer.batch_axis
        self._order.check(layer, running.calls[layer.name], inputs.shape[axis], running.samples)
        running.calls[layer.name] += 1
        old_inputs, new_inputs = inputs.chunk(2, axis)
        if layer.name in self._wanted and layer.name not in self.new:
            if layer.name != self._target:
                raise RowsMoved(self._target)  # which has not run
            running.rows = new_inputs, self._targets(layer, old_inputs)
            if running.repeats:
                raise _Reached
            running.halt(layer.name)  # holds the inputs; computing the targets again is cheaper than holding them
        outputs = apply_module(layer.module, new_inputs, *self.new.get(layer.name, unit_parameters(layer.module)))
        return torch.cat([self._targets(layer, old_inputs), outputs], axis)

    def _targets(self, layer: TracedLayer, old_inputs: Tensor) -> Tensor:
        return apply_module(layer.module, old_inputs, *self._before[layer.name])

    def _run_again(self, names: list[str], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        running = self._running
        for name in names:
            calls = running.calls.copy()
            copied_args, copied_kwargs = cloned((args, kwargs))
            running.repeats = True
            try:
                forward(*copied_args, **copied_kwargs)
            except _Reached:
                pass
            else:
                raise RowsMoved(name)
            finally:
                running.repeats, running.calls = False, calls
            del copied_args, copied_kwargs
            running.halt(name)
        return forward(*args, **kwargs)
