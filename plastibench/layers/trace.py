"""Follow a batch through a network: which modules run, in which order, and who reads whose units.

Registration order is not execution order, and a ViT's residual stream has no single reader, so pairing "each layer
with the next one" zeroes unrelated columns (a bug of several published ReDo ports). Here the flow is observed: every
torch function called on a module's output is seen, whether it was called by a module or by plain code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plastibench.layers.units import has_units
from plastibench.network import Network, as_evaluated

ACTIVATIONS = frozenset(
    [
        "relu",
        "relu_",
        "gelu",
        "silu",
        "silu_",
        "tanh",
        "sigmoid",
        "elu",
        "elu_",
        "selu",
        "selu_",
        "leaky_relu",
        "leaky_relu_",
        "softplus",
        "mish",
        "hardswish",
        "celu",
        "relu6",
        "hardtanh",
        "prelu",
        "hardsigmoid",
        "sin",
    ]
)
# Functions after which output channel i still is unit i.
_CHANNELWISE = frozenset(
    [
        "dropout",
        "dropout_",
        "feature_dropout",
        "alpha_dropout",
        "flatten",
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "__getitem__",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "mean",
        "batch_norm",
        "to",
        "float",
        "clone",
    ]
)
_MERGES = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__", "sub", "__sub__", "cat", "concat", "stack"])


@dataclass
class Traced:
    """A module with units as it was seen at work.

    Attributes:
        name: Its qualified name.
        module: The module.
        activated: A nonlinearity acts directly on its output.
        residual: Its output is added to, or concatenated into, a stream that others write to as well.
        readers: Modules with units whose input is this module's output, directly or through activations, dropout,
            pooling, normalisation by channel or reshapes.
    """

    name: str
    module: nn.Module
    activated: bool = False
    residual: bool = False
    readers: list[str] = field(default_factory=list)

    @property
    def hidden(self) -> bool:
        """A neuron in the classical sense: activated, and read by known modules only (fc1 of a ViT's MLP)."""
        return self.activated and bool(self.readers) and not self.residual


class Dataflow(TorchFunctionMode):
    """While active, marks tensors with the module whose units they hold, and reports activations.

    Args:
        units: Name of every module with units.
        on_activation: Called with the module's name and the activation's output.
    """

    def __init__(self, units: dict[nn.Module, str], on_activation: Callable[[str, Tensor], None] | None = None) -> None:
        super().__init__()
        self.units = units
        self.traced: dict[str, Traced] = {}
        self._on_activation = on_activation
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Dataflow:
        for module in self.units:
            self._hooks.append(module.register_forward_pre_hook(self._enter_module))
            self._hooks.append(module.register_forward_hook(self._leave_module))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        name = self.units[module]
        self.traced.setdefault(name, Traced(name, module))
        source = _mark(args[0]) if args else None
        if source is not None and name not in self.traced[source].readers:
            self.traced[source].readers.append(name)

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        output._plastibench_unit = self.units[module]  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _MERGES:
            merged = args[0] if isinstance(args[0], list | tuple) else args
            for merged_unit in filter(None, map(_mark, merged)):
                self.traced[merged_unit].residual = True
            _set_mark(output, None)
        elif name in ACTIVATIONS or name in _CHANNELWISE:
            source = _mark(args[0]) if args else None
            if source is not None:
                _set_mark(output, source)
                if name in ACTIVATIONS:
                    self.traced[source].activated = True
                    if self._on_activation is not None:
                        self._on_activation(source, output)
        return output


def _mark(value: Any) -> str | None:
    return getattr(value, "_plastibench_unit", None) if isinstance(value, Tensor) else None


def _set_mark(value: Any, source: str | None) -> None:
    if isinstance(value, Tensor) and (source is not None or _mark(value) is not None):
        value._plastibench_unit = source  # type: ignore[attr-defined]


def unit_names(module: nn.Module) -> dict[nn.Module, str]:
    """Every module with units, in registration order, with its qualified name."""
    return {child: name for name, child in module.named_modules() if has_units(child)}


def trace(network: Network, batch: TensorDictBase) -> list[Traced]:
    """The modules with units in the order in which they run.

    A module is left out where it does not run, or where its input does not have one row per sample (its outputs then
    belong to no sample, and no statistics over samples exist).

    Args:
        network: The network.
        batch: Any batch that its loss accepts; three samples of it are used.
    """
    few = batch[: min(3, len(batch))]
    flow = Dataflow(unit_names(network.module))
    per_sample: dict[str, bool] = {}

    def note_rows(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        per_sample[flow.units[module]] = bool(args) and len(output) % len(few) == 0

    hooks = [module.register_forward_hook(note_rows) for module in flow.units]
    try:
        with as_evaluated(network.module), torch.no_grad(), flow:
            network.loss(network.module, few)
    finally:
        for hook in hooks:
            hook.remove()
    return [unit for unit in flow.traced.values() if per_sample[unit.name]]
