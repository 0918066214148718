"""Track which unit each element of a tensor comes from, through every torch function of a forward pass.

Modules that run a layer and plain code between modules (``F.relu``, ``x + y``, ``flatten``) are both observed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plastibench.nn.traced_layer import TracedLayer

ACTIVATIONS = frozenset(
    [
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_", "celu"),
        *("gelu", "silu", "silu_", "mish", "softplus", "tanh", "sigmoid", "hardtanh", "hardswish", "hardsigmoid"),
        "sin",
    ]
)
# Activations that only gate their input if they are multiplied by it: x·sigmoid(x) (SiLU or QuickGELU written out) is
# one activation, and its output is the product.
_GATES = frozenset(["sigmoid", "hardsigmoid"])
_PRODUCTS = frozenset(["mul", "mul_", "__mul__", "__rmul__", "__imul__"])
# Functions that move or pool elements. They are applied to the unit numbers as well.
_MOVES = frozenset(
    [
        *("flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "__getitem__", "movedim"),
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax"),
    ]
)
# Functions after which every element still belongs to the same unit.
_KEEPS = frozenset(
    [
        *("dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "to", "float", "clone"),
        *("batch_norm", "layer_norm", "group_norm", "rms_norm"),
        *("neg", "__neg__", "mul", "mul_", "__mul__", "__rmul__", "div", "div_", "__truediv__"),
    ]
)
_MERGES = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__", "sub", "__sub__", "cat", "concat", "stack"])


@dataclass
class Mark:
    """What a tensor holds.

    Attributes:
        source: Name of the layer whose units it holds.
        unit: The unit that each element comes from, in the tensor's shape; float, so that pooling works on it.
        gate: The tensor is the output of a gating activation that may still be multiplied by its input.
    """

    source: str
    unit: Tensor
    gate: bool = False


class UnitTracker(TorchFunctionMode):
    """While active, marks tensors with the units that they hold, and records readers, activations and merges.

    Attributes:
        traced: The layers that ran, by name, in the order of their first run.
    """

    def __init__(
        self, names: dict[nn.Module, str], on_activation: Callable[[str, Tensor, Tensor], None] | None = None
    ) -> None:
        """Prepare to track.

        Args:
            names: The modules with units to track, with their names.
            on_activation: Called with the layer's name, the output of an activation that acts on its units, and the
                unit of each element.
        """
        super().__init__()
        self.names = names
        self.traced: dict[str, TracedLayer] = {}
        self._on_activation = on_activation
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> UnitTracker:
        for module in self.names:
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
        name = self.names[module]
        self.traced.setdefault(name, TracedLayer(name, module))
        # Each unit of a grouped convolution reads different input channels, so its columns are not recorded.
        mark = get_mark(args[0]) if args and getattr(module, "groups", 1) == 1 else None
        if mark is not None:
            unit = mark.unit.movedim(_unit_axis(module), -1).flatten(0, -2)  # [rows, in]
            if bool((unit == unit[0]).all()):  # a column must hold the same unit in every row
                self.traced[mark.source].columns[name] = unit[0].long()

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        axis = _unit_axis(module)
        shape = [1] * output.ndim
        shape[axis] = output.shape[axis]
        numbers = torch.arange(output.shape[axis], dtype=torch.float32, device=output.device)
        _set_mark(output, Mark(self.names[module], numbers.reshape(shape).expand(output.shape)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        gated = _gated_product(args) if name in _PRODUCTS else None
        if gated is None and name != "__get__":  # reading an attribute, as a shape, does not use the values
            self._settle_gates(args)
        output = func(*args, **kwargs)
        if gated is not None:
            _set_mark(output, gated)
            self._record_activation(gated, output)
        elif name in _MERGES:
            _set_mark(output, self._merge(func, args, kwargs))
        elif name in ACTIVATIONS or name in _KEEPS or name in _MOVES:
            marks = [mark for mark in map(get_mark, args) if mark is not None]
            mark = marks[0] if len(marks) == 1 else None  # a product of two outputs holds the units of neither
            if mark is not None and name in _MOVES:
                unit = func(mark.unit, *args[1:], **kwargs)
                mark = Mark(mark.source, unit) if isinstance(unit, Tensor) and _is_integral(unit) else None
            fits = mark is not None and isinstance(output, Tensor) and output.shape == mark.unit.shape
            if mark is not None and fits and name in _GATES:
                mark = Mark(mark.source, mark.unit, gate=True)
            _set_mark(output, mark if fits else None)
            if mark is not None and fits and name in ACTIVATIONS and not mark.gate:
                self._record_activation(mark, output)
        return output

    def _record_activation(self, mark: Mark, output: Tensor) -> None:
        self.traced[mark.source].activated = True
        if self._on_activation is not None:
            self._on_activation(mark.source, output, mark.unit)

    def _settle_gates(self, values: Any) -> None:
        """Count each gate among ``values`` as an activation of its own: it is used without its input."""
        for value in values:
            if isinstance(value, list | tuple):
                self._settle_gates(value)
            mark = get_mark(value)
            if mark is not None and mark.gate:
                mark.gate = False
                self._record_activation(mark, value)

    def _merge(self, func: Any, args: Any, kwargs: Any) -> Mark | None:
        """The mark of a sum or concatenation, or None if several sources write to it (a residual stream).

        Adding a number, or merging tensors of one layer only, does not make a residual stream.
        """
        listed = isinstance(args[0], list | tuple)
        tensors = [part for part in (*(args[0] if listed else args), *kwargs.values()) if isinstance(part, Tensor)]
        marks = [mark for mark in map(get_mark, tensors) if mark is not None]
        if len(marks) == len(tensors) and len({mark.source for mark in marks}) == 1:
            if len(marks) == 1 and not listed:
                return marks[0]
            if listed and func is not torch.stack:
                return Mark(marks[0].source, func([mark.unit for mark in marks], *args[1:], **kwargs))
        for mark in marks:
            self.traced[mark.source].residual = True
        return None


def get_mark(value: Any) -> Mark | None:
    """The mark of a tensor; None for anything unmarked."""
    return getattr(value, "_plastibench_mark", None) if isinstance(value, Tensor) else None


def _set_mark(value: Any, mark: Mark | None) -> None:
    if isinstance(value, Tensor) and (mark is not None or get_mark(value) is not None):
        value._plastibench_mark = mark  # type: ignore[attr-defined]


def _gated_product(factors: Any) -> Mark | None:
    """The mark of the product of a layer's output and a gate computed from the same output; None if it is not one."""
    marks = [get_mark(factor) for factor in factors]
    if len(marks) != 2 or marks[0] is None or marks[1] is None or marks[0].gate == marks[1].gate:
        return None
    same = marks[0].source == marks[1].source and marks[0].unit.shape == marks[1].unit.shape
    return Mark(marks[0].source, marks[0].unit) if same else None


def _unit_axis(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.Conv2d) else -1


def _is_integral(unit: Tensor) -> bool:
    """Whether every element is still a unit number; a mean over units is not."""
    return bool((unit == unit.round()).all())
