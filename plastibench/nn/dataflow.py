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

from plastibench.config.errors import UserError
from plastibench.config.options import matches
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.units import apply_module, has_units, tied

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
# Nonlinearities that are but a gate where their input is multiplied by them: x·sigmoid(x) is one nonlinearity (SiLU,
# QuickGELU written out), and what it hands on is the product.
_GATES = frozenset(["sigmoid", "hardsigmoid"])
_PRODUCTS = frozenset(["mul", "mul_", "__mul__", "__rmul__", "__imul__"])
# Functions that move units about: what they do to the outputs they do to the units' numbers as well.
_MOVES = frozenset(
    [
        *("flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "__getitem__", "movedim"),
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax"),
    ]
)
# Functions after which every element still belongs to the same unit.
_KEEPS = frozenset(
    [
        *(
            "dropout",
            "dropout_",
            "feature_dropout",
            "alpha_dropout",
            "batch_norm",
            "layer_norm",
            "group_norm",
            "rms_norm",
            "contiguous",
            "to",
            "float",
            "clone",
        ),
        *("neg", "__neg__", "mul", "mul_", "__mul__", "__rmul__", "div", "div_", "__truediv__"),
    ]
)
_MERGES = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__", "sub", "__sub__", "cat", "concat", "stack"])


@dataclass
class TracedLayer:
    """A module with units as it was seen at work.

    Attributes:
        name: Its qualified name.
        module: The module.
        activated: A nonlinearity acts directly on its output.
        output: Its outputs are the network's own.
        residual: Its output is added to, or concatenated into, a stream that others write to as well.
        columns: For each module with units whose input is this module's output (directly or through activations,
            dropout, pooling, scaling or reshapes), which of its units each input column holds. [in]
        outgoing: Likewise for the modules whose weights multiply its units: the readers and, where one is a LayerNorm,
            which only scales them, the readers of that.
        batch_norms: The BatchNorm modules whose features are its units.
        tied: Its weight is another module's, too.
    """

    name: str
    module: nn.Module
    activated: bool = False
    residual: bool = False
    output: bool = False
    columns: dict[str, Tensor] = field(default_factory=dict)
    outgoing: dict[str, Tensor] = field(default_factory=dict)
    batch_norms: list[str] = field(default_factory=list)
    tied: bool = False

    @property
    def readers(self) -> list[str]:
        """The modules that read its units."""
        return list(self.columns)

    @property
    def trained(self) -> bool:
        """Whether its weights are learned, and its own: neither frozen (by plasticity injection) nor tied."""
        weight = self.module.weight
        return isinstance(weight, Tensor) and weight.requires_grad and not self.tied

    @property
    def hidden(self) -> bool:
        """A neuron in the classical sense: activated, and read by known modules only (fc1 of a ViT's MLP)."""
        return self.activated and bool(self.outgoing) and not self.residual


@dataclass
class _Mark:
    """What a tensor holds: the outputs of a module, and the number of the unit that each element comes from."""

    source: str
    unit: Tensor  # float, so that pooling works on it; of the tensor's own shape
    gate: bool = False  # made by a nonlinearity of which is not known yet whether it will be multiplied by its input


class Dataflow(TorchFunctionMode):
    """While active, marks tensors with the module whose units they hold, and reports activations.

    Args:
        units: Name of every module with units.
        on_activation: Called with the module's name, the activation's output, and the unit of each of its elements.
    """

    def __init__(
        self, units: dict[nn.Module, str], on_activation: Callable[[str, Tensor, Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.units = units
        self.traced: dict[str, TracedLayer] = {}
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
        self.traced.setdefault(name, TracedLayer(name, module))
        mark = _mark(args[0]) if args and getattr(module, "groups", 1) == 1 else None
        if mark is not None:  # each unit of a grouped convolution reads others
            unit = mark.unit.movedim(_unit_axis(module), -1).flatten(0, -2)  # [rows, in]
            if bool((unit == unit[0]).all()):  # else a column holds other units in other rows
                self.traced[mark.source].columns[name] = unit[0].long()

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        axis = _unit_axis(module)
        shape = [1] * output.ndim
        shape[axis] = output.shape[axis]
        numbers = torch.arange(output.shape[axis], dtype=torch.float32, device=output.device)
        _set_mark(output, _Mark(self.units[module], numbers.reshape(shape).expand(output.shape)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        gated = _gated(args) if name in _PRODUCTS else None
        if gated is None and name != "__get__":  # a look at a shape is no use
            self._settle(args)
        output = func(*args, **kwargs)
        if gated is not None:
            _set_mark(output, gated)
            self._activated(gated, output)
        elif name in _MERGES:
            _set_mark(output, self._merged(func, args, kwargs))
        elif name in ACTIVATIONS or name in _KEEPS or name in _MOVES:
            marks = [mark for mark in map(_mark, args) if mark is not None]
            mark = marks[0] if len(marks) == 1 else None  # a product of two outputs holds the units of neither
            if mark is not None and name in _MOVES:
                unit = func(mark.unit, *args[1:], **kwargs)
                mark = _Mark(mark.source, unit) if isinstance(unit, Tensor) and _whole(unit) else None
            fits = mark is not None and isinstance(output, Tensor) and output.shape == mark.unit.shape
            if mark is not None and fits and name in _GATES:
                mark = _Mark(mark.source, mark.unit, gate=True)
            _set_mark(output, mark if fits else None)
            if mark is not None and fits and name in ACTIVATIONS and not mark.gate:
                self._activated(mark, output)
        return output

    def _activated(self, mark: _Mark, output: Tensor) -> None:
        self.traced[mark.source].activated = True
        if self._on_activation is not None:
            self._on_activation(mark.source, output, mark.unit)

    def _settle(self, values: Any) -> None:
        """A gate that anything but its own input meets is the nonlinearity itself."""
        for value in values:
            if isinstance(value, list | tuple):
                self._settle(value)
            mark = _mark(value)
            if mark is not None and mark.gate:
                mark.gate = False
                self._activated(mark, value)

    def _merged(self, func: Any, args: Any, kwargs: Any) -> _Mark | None:
        """The mark of a sum or concatenation: a number or the module's own outputs are no stream of others."""
        listed = isinstance(args[0], list | tuple)
        tensors = [part for part in (*(args[0] if listed else args), *kwargs.values()) if isinstance(part, Tensor)]
        marks = [mark for mark in map(_mark, tensors) if mark is not None]
        if len(marks) == len(tensors) and len({mark.source for mark in marks}) == 1:
            if len(marks) == 1 and not listed:
                return marks[0]
            if listed and func is not torch.stack:
                return _Mark(marks[0].source, func([mark.unit for mark in marks], *args[1:], **kwargs))
        for mark in marks:
            self.traced[mark.source].residual = True
        return None


def _unit_axis(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.Conv2d) else -1


def _whole(unit: Tensor) -> bool:
    """Whether every element still is the number of one unit: a mean over units is not."""
    return bool((unit == unit.round()).all())


def _gated(factors: Any) -> _Mark | None:
    """What the product of a module's output and a gate made of the same output holds; None where it is no such."""
    marks = [_mark(factor) for factor in factors]
    if len(marks) != 2 or marks[0] is None or marks[1] is None or marks[0].gate == marks[1].gate:
        return None
    same = marks[0].source == marks[1].source and marks[0].unit.shape == marks[1].unit.shape
    return _Mark(marks[0].source, marks[0].unit) if same else None


def _mark(value: Any) -> _Mark | None:
    return getattr(value, "_plastibench_mark", None) if isinstance(value, Tensor) else None


def _set_mark(value: Any, mark: _Mark | None) -> None:
    if isinstance(value, Tensor) and (mark is not None or _mark(value) is not None):
        value._plastibench_mark = mark  # type: ignore[attr-defined]


def unit_names(module: nn.Module) -> dict[nn.Module, str]:
    """Every module with units, in registration order, with its qualified name."""
    return {child: name for name, child in module.named_modules() if has_units(child)}


def must_match(expression: str, module: nn.Module, what: str) -> None:
    """See, before anything is trained, that an expression that selects modules by name finds some.

    Args:
        expression: A regular expression that a user gave.
        module: The network.
        what: How the user calls it: ``modules``.

    Raises:
        UserError: It is none, or finds nothing.
    """
    names = list(unit_names(module).values())
    try:
        found = any(matches(expression, name) for name in names)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    if not found:
        raise UserError(f"{what} '{expression}' selects nothing in this network (it has {', '.join(names[:6])}, …)")


def trace(network: Network, batch: TensorDictBase) -> list[TracedLayer]:
    """The modules with units in the order in which they run.

    Left out are modules that do not run; that do not compute what their class does (weights standardised on the fly,
    padding of their own); whose weight is computed from other parameters (``nn.utils.parametrizations``); and whose
    rows are no samples, so that no statistics over samples exist.

    Args:
        network: The network.
        batch: Any batch that its loss accepts; three samples of it are used.
    """
    few = batch[: min(3, len(batch))]
    flow = Dataflow(unit_names(network.module))
    rows: dict[str, list[int]] = {}
    plain: dict[str, bool] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        name = flow.units[module]
        rows.setdefault(name, []).append(len(output))
        if name not in plain:
            plain[name] = bool(args) and _computes_as_its_class(module, args[0], output)

    def note_norm(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            mark = _mark(args[0])
            if mark is not None and bool(
                (mark.unit.movedim(1, -1) == torch.arange(mark.unit.shape[1], device=mark.unit.device)).all()
            ):
                flow.traced[mark.source].batch_norms.append(name)

        return see

    hooks = [module.register_forward_hook(note) for module in flow.units]
    for name, module in network.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(note_norm(name)))
    try:
        with as_evaluated(network.module), torch.no_grad():
            with flow:
                network.loss(network.module, few)
            once = {name: sum(counts) for name, counts in rows.items()}
            rows.clear()
            network.loss(network.module, torch.cat([few, few]))
    finally:
        for hook in hooks:
            hook.remove()
    samples = {name for name, count in once.items() if sum(rows.get(name, [])) == 2 * count}
    plain = {name: own and isinstance(flow.traced[name].module.weight, nn.Parameter) for name, own in plain.items()}
    units = [unit for unit in flow.traced.values() if plain[unit.name] and unit.name in samples]
    shared = tied(network.module)
    for unit in units:
        unit.tied = unit.module.weight in shared
        unit.output = unit.name in network.outputs if network.outputs else unit is units[-1]
    follow_norms(units)
    return units


def follow_norms(units: list[TracedLayer]) -> None:
    """Fill in what of each unit is ``outgoing``, given who reads whom.

    That is nothing where a reader's weight is tied to another module's, or a norm's own readers are unknown.

    Args:
        units: In order of execution.
    """
    by_name = {unit.name: unit for unit in units}
    for unit in reversed(units):
        norms = {name for name in unit.columns if _is_norm(by_name.get(name))}
        if any(name in by_name and by_name[name].tied for name in unit.columns):
            continue
        unit.outgoing = {name: columns for name, columns in unit.columns.items() if name not in norms}
        for norm in norms:
            behind = by_name[norm]
            if behind.residual or not behind.outgoing:
                unit.outgoing = {}
                break
            for name, columns in [*behind.outgoing.items()]:  # a norm may read itself
                unit.outgoing[name] = unit.columns[norm][columns.to(unit.columns[norm].device)]


def _is_norm(unit: TracedLayer | None) -> bool:
    return unit is not None and isinstance(unit.module, nn.LayerNorm)


def _computes_as_its_class(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    try:
        again = apply_module(module, inputs, weight, bias)
    except RuntimeError:
        return False
    return again.shape == output.shape and torch.allclose(again, output, rtol=1e-3, atol=1e-5, equal_nan=True)
