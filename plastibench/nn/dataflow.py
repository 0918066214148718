"""Trace a network: which layers run, in which order, and which layers read the units of which.

Registration order is not execution order, and a ViT's residual stream has no single reader. Pairing each layer with the
next one therefore zeroes unrelated columns, a bug of several published ReDo ports. Here the flow is observed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer, set_outgoing
from plastibench.nn.unit_tracking import UnitTracker, get_mark
from plastibench.nn.units import apply_module, modules_with_units, tied_parameters


def trace(network: Network, batch: TensorDictBase) -> list[TracedLayer]:
    """Trace the layers with units, in execution order.

    These layers are left out:

    - layers that do not run;
    - layers that compute something else than their class does (weights standardized on the fly, custom padding);
    - layers whose weight is computed from other parameters (``nn.utils.parametrizations``);
    - layers whose rows are not samples, so that statistics over samples do not exist.

    Args:
        network: The network.
        batch: Any batch that its loss accepts; the first three samples are used.
    """
    few = batch[: min(3, len(batch))]
    tracker = UnitTracker(modules_with_units(network.module))
    rows: dict[str, list[int]] = {}
    plain: dict[str, bool] = {}

    def note_rows(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        name = tracker.names[module]
        rows.setdefault(name, []).append(len(output))
        if name not in plain:
            plain[name] = bool(args) and _computes_as_its_class(module, args[0], output)

    def note_batch_norm(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            mark = get_mark(args[0])
            if mark is not None and bool(
                (mark.unit.movedim(1, -1) == torch.arange(mark.unit.shape[1], device=mark.unit.device)).all()
            ):
                tracker.traced[mark.source].batch_norms.append(name)

        return hook

    hooks = [module.register_forward_hook(note_rows) for module in tracker.names]
    for name, module in network.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(note_batch_norm(name)))
    try:
        with as_evaluated(network.module), torch.no_grad():
            with tracker:
                network.loss(network.module, few)
            once = {name: sum(counts) for name, counts in rows.items()}
            rows.clear()
            network.loss(network.module, torch.cat([few, few]))
    finally:
        for hook in hooks:
            hook.remove()
    # Rows are samples if twice the batch makes twice the rows.
    samples = {name for name, count in once.items() if sum(rows.get(name, [])) == 2 * count}
    plain = {name: own and isinstance(tracker.traced[name].module.weight, nn.Parameter) for name, own in plain.items()}
    layers = [layer for layer in tracker.traced.values() if plain[layer.name] and layer.name in samples]
    shared = tied_parameters(network.module)
    for layer in layers:
        layer.tied = layer.module.weight in shared
        layer.output = layer.name in network.outputs if network.outputs else layer is layers[-1]
    set_outgoing(layers)
    return layers


def _computes_as_its_class(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    try:
        expected = apply_module(module, inputs, weight, bias)
    except RuntimeError:
        return False
    return expected.shape == output.shape and torch.allclose(expected, output, rtol=1e-3, atol=1e-5, equal_nan=True)
