"""Trace a network: which layers run, in which order, and which layers read whose units.

Registration order is not execution order, and a ViT's residual stream has no single reader. Pairing each layer with the
next one therefore zeroes unrelated columns, a bug in several published ReDo ports. This module observes the flow
instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.loss_graph import layers_before_loss
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer, set_outgoing
from plastibench.nn.unit_tracking import UnitTracker, get_mark
from plastibench.nn.units import apply_module, modules_with_units, tied_parameters, unit_weight

_FEW = 3  # samples of a trace
_MORE = 16  # if some layers do not run on the first ones

Traced = tuple[list[TracedLayer], dict[str, str]]  # the layers, and why the other modules are left out


def trace(network: Network, batch: TensorDictBase) -> list[TracedLayer]:
    """Trace the layers with units, in execution order.

    These layers are left out:

    - layers that do not run;
    - layers that do not compute what their class computes (weights standardized on the fly, custom padding);
    - layers whose weight is computed from other parameters (``nn.utils.parametrizations``);
    - layers whose rows are not samples, so that statistics over samples do not exist.

    Args:
        network: The network.
        batch: Any batch that its loss accepts. The first three samples are used, or 16 if some layers with units do
            not run on these.
    """
    return trace_with_reasons(network, batch)[0]


def trace_with_reasons(network: Network, batch: TensorDictBase, samples: int = _FEW) -> Traced:
    """Like :func:`trace`, with another number of samples; also return why the other modules are left out, by name."""
    few = batch[: min(samples, len(batch))]
    with as_evaluated(network.module), torch.no_grad():
        observed = _observe(network, few)
        incomplete = len(observed.tracker.traced) < len(observed.tracker.names)  # experts without a token
        if incomplete and len(batch) > samples:
            few = batch[:_MORE]
            observed = _observe(network, few)
        doubled = _shapes(network, torch.cat([few, few]), observed.tracker.names)
        outputs = set(network.outputs) or layers_before_loss(network, few, observed.tracker.names)
    layers: list[TracedLayer] = []
    reasons = dict.fromkeys(observed.tracker.names.values(), "does not run, or its parent uses its weight")
    for layer in observed.tracker.traced.values():
        axis = _batch_axis(observed.shapes[layer.name], doubled.get(layer.name, []))
        if not isinstance(layer.module.weight, nn.Parameter):
            reasons[layer.name] = "weight is computed from other parameters"
        elif not observed.plain[layer.name]:
            reasons[layer.name] = "does not compute what its class computes"
        elif axis is None:
            reasons[layer.name] = "its rows are not samples"
        else:
            del reasons[layer.name]
            layer.batch_axis = axis
            layers.append(layer)
    shared = tied_parameters(network.module)
    for layer in layers:
        layer.tied = layer.module.weight in shared
        layer.output = layer is layers[-1] if outputs is None else layer.name in outputs
    set_outgoing(layers)
    return layers, reasons


@dataclass
class _Observed:
    """What was observed in a forward pass.

    Attributes:
        tracker: The layers that ran, and their readers.
        shapes: Output shape of each call, by layer.
        plain: Whether the first call computed what the layer's class computes, by layer.
    """

    tracker: UnitTracker
    shapes: dict[str, list[torch.Size]]
    plain: dict[str, bool]


def _observe(network: Network, batch: TensorDictBase) -> _Observed:
    tracker = UnitTracker(modules_with_units(network.module))
    observed = _Observed(tracker, {}, {})

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        name = tracker.names[module]
        observed.shapes.setdefault(name, []).append(output.shape)
        if name not in observed.plain:
            observed.plain[name] = bool(args) and _computes_as_its_class(module, args[0], output)

    def note_batch_norm(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            mark = get_mark(args[0])
            if mark is not None and bool(
                (mark.unit.movedim(1, -1) == torch.arange(mark.unit.shape[1], device=mark.unit.device)).all()
            ):
                tracker.traced[mark.source].batch_norms.append(name)

        return hook

    hooks = [module.register_forward_hook(note) for module in tracker.names]
    for name, module in network.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(note_batch_norm(name)))
    try:
        with tracker:
            network.loss(network.module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return observed


def _shapes(network: Network, batch: TensorDictBase, names: Mapping[nn.Module, str]) -> dict[str, list[torch.Size]]:
    """Output shape of each call, by layer."""
    found: dict[str, list[torch.Size]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        found.setdefault(names[module], []).append(output.shape)

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        network.loss(network.module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _batch_axis(once: list[torch.Size], doubled: list[torch.Size]) -> int | None:
    """Return the axis along which a layer's outputs grow with the batch; None if its rows are not samples."""
    if sum(shape.numel() for shape in doubled) != 2 * sum(shape.numel() for shape in once):
        return None
    if not doubled or len(once[0]) != len(doubled[0]):
        return 0
    grown = [axis for axis, (one, two) in enumerate(zip(once[0], doubled[0], strict=True)) if one != two]
    return grown[0] if len(grown) == 1 else 0


def _computes_as_its_class(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    weight, bias = unit_weight(module), getattr(module, "bias", None)
    try:
        expected = apply_module(module, inputs, weight, bias)
    except RuntimeError:
        return False
    return expected.shape == output.shape and torch.allclose(expected, output, rtol=1e-3, atol=1e-5, equal_nan=True)
