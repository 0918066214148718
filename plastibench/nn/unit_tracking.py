"""Track which unit each element of a tensor comes from, through every torch function of a forward pass.

Modules that run a layer and plain code between modules (``F.relu``, ``x + y``, ``flatten``) are both observed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_axis

ACTIVATIONS = frozenset(
    [
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_", "celu"),
        *("gelu", "silu", "silu_", "mish", "softplus", "tanh", "sigmoid", "hardtanh", "hardswish", "hardsigmoid"),
        *("celu_", "hardtanh_", "rrelu", "rrelu_", "hardshrink", "softshrink", "tanhshrink", "softsign", "logsigmoid"),
        *(
            "threshold",
            "_threshold",
            "threshold_",
            "clamp",
            "clamp_",
            "clamp_min",
            "clamp_min_",
            "clamp_max",
            "clamp_max_",
        ),
        *("clip", "clip_", "maximum", "minimum", "fmax", "fmin", "max", "min", "sin"),
        *("cos", "atan", "arctan", "logaddexp", "special_expit", "special_ndtr"),
    ]
)
# Activations that only gate their input if they are multiplied by it: x·sigmoid(x) (SiLU or QuickGELU written out) is
# one activation, and its output is the product.
_GATES = frozenset(["sigmoid", "special_expit", "special_ndtr", "hardsigmoid", "softplus"])
# Functions that are parts of written-out activations, such as x·(x > 0), x·(1 + erf(x))/2 or (x + |x|)/2. Alone they
# are not an activation: a norm also computes x².
_COMPARISONS = frozenset(["gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__", "greater", "less"])
_PARTS = _COMPARISONS | frozenset(
    [
        *("pow", "__pow__", "square", "abs", "__abs__", "exp", "erf", "special_erf", "sign", "signbit", "sqrt"),
        *("log1p", "expm1", "heaviside"),
    ]
)
# Functions of conditions, such as ~(x <= 0) and (x > 0) & (x < 6).
_LOGIC = frozenset(
    [
        *("bitwise_not", "__invert__", "logical_not", "bitwise_and", "__and__", "__rand__", "logical_and"),
        *("bitwise_or", "__or__", "__ror__", "logical_or"),
    ]
)
_CASTS = frozenset(["float", "double", "half", "bfloat16", "to", "type", "type_as"])
_PRODUCTS = frozenset(
    ["mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__rtruediv__", "__itruediv__"]
)
_SUMS = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__", "sub", "sub_", "__sub__", "__rsub__", "rsub"])
_SIGNS = frozenset(["neg", "__neg__", "clone", "contiguous"])
# Functions that choose between elements by a condition; they are activations if the condition is on the same units.
_CHOICES = frozenset(["where", "masked_fill", "masked_fill_", "masked_scatter", "__setitem__"])
# Functions that split a tensor into several. They are applied to the unit numbers as well.
_SPLITS = frozenset(["chunk", "split", "tensor_split", "unbind"])
# Functions that move or pool elements. They are applied to the unit numbers as well.
_MOVES = frozenset(
    [
        *("flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "__getitem__", "movedim"),
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax"),
        *("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "unflatten", "swapaxes"),
        *("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "swapdims"),
    ]
)
# Functions after which every element still belongs to the same unit.
_KEEPS = _CASTS | frozenset(
    [
        *("dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "nan_to_num"),
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
        pending: Set if the tensor may be part of a written-out activation; says how the tensor counts if it turns out
            not to be: ``activation`` (a sigmoid that gates nothing) or ``none`` (a comparison). Otherwise empty.
        active: An activation has acted on the units.
    """

    source: str
    unit: Tensor
    pending: Literal["", "activation", "none"] = ""
    active: bool = False


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
        if not args or getattr(module, "groups", 1) != 1:
            return  # each unit of a grouped convolution reads different input channels
        mark = get_mark(args[0])
        if mark is not None and mark.pending:  # x² that a layer reads is an activation
            mark.pending, mark.active = "", True
            self._record_activation(mark, args[0])
        if mark is not None and mark.unit.numel():
            unit = _distinct(mark.unit.movedim(unit_axis(module), -1)).flatten(0, -2)  # [rows, in]
            if bool((unit == unit[0]).all()):  # a column must hold the same unit in every row
                self.traced[mark.source].columns[name] = unit[0].long()

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        axis = unit_axis(module)
        shape = [1] * output.ndim
        shape[axis] = output.shape[axis]
        numbers = torch.arange(output.shape[axis], dtype=torch.float32, device=output.device)
        _set_mark(output, Mark(self.names[module], numbers.reshape(shape).expand(output.shape)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written_out = _written_out(name, args, kwargs)
        if written_out is None and name != "__get__":  # reading an attribute, as a shape, does not use the values
            self._settle(args)
            self._settle(tuple(kwargs.values()))
        output = func(*args, **kwargs)
        result = args[0] if name == "__setitem__" else output
        if written_out is not None:
            fits = isinstance(result, Tensor) and result.shape == written_out.unit.shape
            _set_mark(result, written_out if fits else None)
            if fits and written_out.active and not written_out.pending:
                self._record_activation(written_out, result)
        elif name in _MERGES:
            _set_mark(output, self._merge(func, args, kwargs))
        elif name in ACTIVATIONS or name in _KEEPS or name in _MOVES:
            operands = args[:1] if name in _CASTS else (*args, *kwargs.values())  # x.to(y) holds the units of x
            marks = [mark for mark in map(_settled_mark, operands) if mark is not None]
            mark = marks[0] if len(marks) == 1 else _gated_unit(marks) if name in _PRODUCTS else None
            if mark is not None and name in _MOVES:
                unit = _moved(func, name, mark.unit, args[1:], kwargs)
                mark = replace(mark, unit=unit) if isinstance(unit, Tensor) and _is_integral(unit) else None
            fits = mark is not None and isinstance(output, Tensor) and output.shape == mark.unit.shape
            if mark is not None and fits and name in ACTIVATIONS:
                mark = replace(mark, active=True)
                self._record_activation(mark, output)
            _set_mark(output, mark if fits else None)
        elif name in _SPLITS:
            mark = _settled_mark(args[0]) if args else None
            units = None if mark is None else _moved(func, name, mark.unit, args[1:], kwargs)
            for part, unit in zip(output, units or [None] * len(output), strict=True):
                _set_mark(part, None if mark is None or unit is None else replace(mark, unit=unit))
        elif name in _CHOICES or name in _PARTS:
            _set_mark(result, None)
        return output

    def _record_activation(self, mark: Mark, output: Tensor) -> None:
        self.traced[mark.source].activated = True
        if self._on_activation is not None:
            self._on_activation(mark.source, output, mark.unit)

    def _settle(self, values: Any) -> None:
        """Count each pending activation among ``values`` as a separate activation: it is used without its input."""
        for value in values:
            if isinstance(value, list | tuple):
                self._settle(value)
            mark = get_mark(value)
            if mark is not None and mark.pending == "activation":
                mark.pending, mark.active = "", True
                self._record_activation(mark, value)

    def _merge(self, func: Any, args: Any, kwargs: Any) -> Mark | None:
        """The mark of a sum or concatenation, or None if several sources write to it (a residual stream).

        Adding a number, or merging tensors of one layer only, does not make a residual stream.
        """
        listed = isinstance(args[0], list | tuple)
        tensors = [part for part in (*(args[0] if listed else args), *kwargs.values()) if isinstance(part, Tensor)]
        marks = [mark for mark in map(_settled_mark, tensors) if mark is not None]
        if len(marks) == len(tensors) and len({mark.source for mark in marks}) == 1:
            if len(marks) == 1 and not listed:
                return marks[0]
            if listed and func is not torch.stack:
                unit = func([mark.unit for mark in marks], *args[1:], **kwargs)
                return Mark(marks[0].source, unit, active=all(mark.active for mark in marks))
        for mark in marks:
            self.traced[mark.source].residual = True
        return None


def axis_of_units(unit: Tensor, count: int) -> int | None:
    """The axis along which units 0 to ``count`` - 1 lie in order, the same in every row; None if there is none.

    Args:
        unit: Index of the unit of each element, in the tensor's shape, from a :class:`Mark`.
        count: Number of units of the layer.
    """
    axes = [axis for axis, stride in enumerate(unit.stride()) if stride and unit.shape[axis] > 1]
    if len(axes) != 1 or unit.shape[axes[0]] != count or not unit.numel():
        return None
    (axis,) = axes
    if unit.numel() > count:  # a copy in another order has strides along the other axes as well
        return axis
    return axis if torch.equal(unit.flatten().long(), torch.arange(count, device=unit.device)) else None


def get_mark(value: Any) -> Mark | None:
    """The mark of a tensor; None if it has no mark."""
    return getattr(value, "_plastibench_mark", None) if isinstance(value, Tensor) else None


def _set_mark(value: Any, mark: Mark | None) -> None:
    if isinstance(value, Tensor) and (mark is not None or get_mark(value) is not None):
        value._plastibench_mark = mark  # type: ignore[attr-defined]


def _settled_mark(value: Any) -> Mark | None:
    """Return the mark of a tensor that holds units and not only a part of an activation."""
    mark = get_mark(value)
    return mark if mark is not None and not mark.pending else None


def _moved(func: Any, name: str, unit: Tensor, args: Any, kwargs: Any) -> Any:
    """Apply a function that moves elements to the unit numbers; None if it cannot act on them.

    Unit numbers are often expanded or permuted, so ``view`` would need another layout than that of the tensor itself.
    """
    try:
        return (Tensor.reshape if name == "view" else func)(unit, *args, **kwargs)
    except (RuntimeError, TypeError):  # view(torch.int32)
        return None


def _gated_unit(marks: list[Mark]) -> Mark | None:
    """Return the mark of the elementwise product of an activated and a linear layer (SwiGLU): the activated one.

    A unit of a gated MLP is one neuron with two rows of incoming weights; without its activated row it is silent. Any
    other product of two outputs holds the units of neither.
    """
    if len(marks) != 2 or marks[0].active == marks[1].active or marks[0].unit.shape != marks[1].unit.shape:
        return None
    active = marks[0] if marks[0].active else marks[1]
    return active if torch.equal(marks[0].unit, marks[1].unit) else None


def _written_out(name: str, args: Any, kwargs: Any) -> Mark | None:
    """Return the mark of the result if the function is a step of a written-out activation; otherwise None.

    All marked operands must hold the same units in the same places. The result is the activation itself (active and
    not pending) if it combines units with a pending part, and otherwise a part (pending).
    """
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    marks = [mark for mark in map(get_mark, operands) if mark is not None]
    if not marks or not all(_same_units(mark, marks[0]) for mark in marks):
        return None
    first, pending = marks[0], [mark for mark in marks if mark.pending]
    active = any(mark.active for mark in marks)
    others = [value for value in operands if get_mark(value) is None and value.ndim]
    alone = len(marks) == 1 and not others
    if name in _CHOICES:
        conditions = [get_mark(value) for value in operands if value.dtype == torch.bool]
        chosen = any(mark is not None and mark.pending for mark in conditions) and len(pending) < len(marks)
        return Mark(first.source, first.unit, active=True) if chosen else None
    if name in _CASTS:
        cast = get_mark(args[0]) if args else None
        return replace(cast) if cast is not None and cast.pending else None
    if name in _LOGIC and len(pending) == len(marks) and not others:
        return replace(first)
    if name in _PARTS and (alone or name in _COMPARISONS or name == "heaviside") and len(marks) == 1:
        if first.active and not pending and name not in _COMPARISONS:
            return replace(first)  # relu(x)²
        return Mark(first.source, first.unit, "none", active)
    if name in _GATES and alone:
        return Mark(first.source, first.unit, "activation", active)
    if pending and alone and (name in ACTIVATIONS or name in _PRODUCTS or name in _SUMS or name in _SIGNS):
        return Mark(first.source, first.unit, "activation" if name in ACTIVATIONS else first.pending, active)
    if len(marks) > 1 and not others and (name in _PRODUCTS or name in _SUMS or name in ACTIVATIONS):
        if name in _PRODUCTS and len(pending) < len(marks):
            if pending:
                return Mark(first.source, first.unit, active=True)
            # relu(x)·relu(x) and x·x
            return replace(first) if all(mark.active for mark in marks) else Mark(first.source, first.unit, "none")
        if pending:
            return Mark(first.source, first.unit, "activation", active)
        if name in ACTIVATIONS:  # max(x, 0.1·x)
            return Mark(first.source, first.unit, active=True)
    return None


def _same_units(one: Mark, other: Mark) -> bool:
    """Whether two tensors hold the same units in the same places."""
    if one.unit is other.unit:
        return one.source == other.source
    return one.source == other.source and one.unit.shape == other.unit.shape and torch.equal(one.unit, other.unit)


def _is_integral(unit: Tensor) -> bool:
    """Whether every element is still a unit number; a mean over units is not."""
    distinct = _distinct(unit)
    return bool((distinct == distinct.round()).all())


def _distinct(unit: Tensor) -> Tensor:
    """Drop copies: axes, other than the last, along which an expanded tensor repeats the same memory."""
    for axis, stride in enumerate(unit.stride()[:-1]):
        if stride == 0 and unit.shape[axis] > 1:
            unit = unit.narrow(axis, 0, 1)
    return unit
