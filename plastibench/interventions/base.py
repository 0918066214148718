"""The interface that every intervention shares."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.own_code import is_own, location
from plastibench.nn.network import Network
from plastibench.utils.wording import plural

_WIDEST = 118  # characters of a printed line


@dataclass(repr=False)
class Report:
    """What an intervention did to one network; it prints in at most three lines.

    Attributes:
        units: Masks [H] of the reinitialized units, by module name.
        parameters: Number of scalars that were reinitialized, shrunk or refitted.
        modules: Values worth recording (``revived``, ``residual``, ``norm_ratio``), by module name.
        seconds: Wall-clock time; this and the other times are filled in by the caller.
        cpu_seconds: CPU time of the process.
        gpu_seconds: GPU time; None if the network is not on a GPU.
    """

    units: dict[str, Tensor] = field(default_factory=dict)
    parameters: int = 0
    modules: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float | None = None

    def add(self, other: Report) -> None:
        """Add what another intervention did to the same network."""
        for name, mask in other.units.items():
            self.units[name] = self.units[name] | mask if name in self.units else mask
        self.parameters += other.parameters
        for module, values in other.modules.items():
            self.note(module, **values)

    def note(self, module: str, **values: float) -> None:
        """Record values of one module."""
        self.modules.setdefault(module, {}).update(values)

    @property
    def revived_fraction(self) -> float:
        """Fraction of units reinitialized, among all modules that were examined; 0 if there were none."""
        total = sum(mask.numel() for mask in self.units.values())
        return sum(int(mask.sum()) for mask in self.units.values()) / total if total else 0.0

    def totals(self) -> str:
        """One line: ``12 of 300 units reinitialized (4.0 %), 1,234 parameters changed, 0.012 s``."""
        total = sum(mask.numel() for mask in self.units.values())
        count = sum(int(mask.sum()) for mask in self.units.values())
        parts = [f"{count:,} of {plural(total, 'unit')} reinitialized ({100 * count / total:.1f} %)"] if total else []
        return ", ".join([*parts, f"{plural(self.parameters, 'parameter')} changed", f"{self.seconds:.3g} s"])

    def __repr__(self) -> str:
        """The totals, and the mean of each value over the modules that have it."""
        values: dict[str, list[float]] = {}
        for recorded in self.modules.values():
            for name, value in recorded.items():
                values.setdefault(name, []).append(value)
        means = [f"{name} {sum(of) / len(of):.3g}" for name, of in values.items()]
        count = len(self.modules)
        of_modules = f"  mean over {count} module{'s' * (count > 1)}: {', '.join(means)}"
        lines = [f"Report: {self.totals()}", *([_shortened(of_modules)] if means else [])]
        return "\n".join(lines)


def _shortened(line: str) -> str:
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"


class Intervention:
    """A method that prevents or repairs plasticity loss. Each instance acts on one network.

    A subclass is a dataclass whose fields, declared with :func:`plastibench.config.options.option`, are its options. It
    overrides one or two of the hooks below; each does nothing by default. Hooks edit tensors in place, draw random
    numbers from ``network.generator`` only, and leave gradients and train/eval modes unchanged.
    """

    grows: ClassVar[bool] = False  # whether `intervene` adds parameters to the network
    _registered_name = ""  # registered name under which it was created

    def __init_subclass__(cls, **options: Any) -> None:
        """Wrap two hooks of classes outside plastibench, so that their return values are always checked."""
        super().__init_subclass__(**options)
        body = vars(cls).get("intervene")
        if inspect.isfunction(body) and is_own(cls.__module__):
            setattr(cls, "intervene", _with_checked_report(body))  # noqa: B010 - mypy refuses to assign a method
        body = vars(cls).get("penalty")
        if inspect.isfunction(body) and is_own(cls.__module__):
            setattr(cls, "penalty", _with_checked_penalty(body))  # noqa: B010

    def prepare(self, network: Network) -> None:
        """Called once before training, to copy initial weights or ``network.rebuild`` the architecture."""

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """A scalar added to the network's loss at every update, or None."""
        return None

    def before_update(self, network: Network) -> None:
        """Called before every optimizer step, after gradients are computed and clipped."""

    def after_update(self, network: Network) -> None:
        """Called after every optimizer step; the gradients are still available."""

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Act on the network, at task boundaries or every N updates, according to the schedule.

        Args:
            network: The network.
            batch: A large representative batch of the data to come, with labels or transitions.
        """
        return Report()

    def evaluated(self, network: Network) -> nn.Module:
        """The module to evaluate: the network's own, or an averaged copy of it."""
        return network.module

    def wrapped(self) -> tuple[Intervention, ...]:
        """The interventions to which this class forwards its hooks; empty by default."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""


def _with_checked_report(body: Callable[..., Any]) -> Callable[..., Report]:
    """Make ``intervene`` raise a UserError with file and line if it does not return a ``Report``."""

    @functools.wraps(body)
    def intervene(self: Intervention, *arguments: Any, **options: Any) -> Report:
        report = body(self, *arguments, **options)
        if isinstance(report, Report):
            if not _is_valid(report):
                raise UserError(
                    f"{location(body)}: {type(self).__name__}.intervene returned an invalid Report: units (masks) and "
                    "modules (dicts of numbers) are dicts by module name, and parameters is an integer of at least 0"
                )
            return report
        what = "None" if report is None else f"a value of type {type(report).__name__}"
        raise UserError(
            f"{location(body)}: {type(self).__name__}.intervene returned {what}; end it with a Report, such as: "
            "return Report(parameters=number_of_changed_scalars)"
        )

    return intervene


def _with_checked_penalty(body: Callable[..., Any]) -> Callable[..., Tensor | None]:
    """Make ``penalty`` raise a UserError with file and line if it returns neither a single number nor None."""

    @functools.wraps(body)
    def penalty(self: Intervention, *arguments: Any, **options: Any) -> Any:
        term = body(self, *arguments, **options)
        single = term.numel() == 1 if isinstance(term, Tensor) else isinstance(term, int | float)
        if term is None or single:
            return term
        what = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"of type {type(term).__name__}"
        raise UserError(
            f"{location(body)}: {type(self).__name__}.penalty returned a value {what}; return a scalar tensor, which "
            "is added to the loss, or None"
        )

    return penalty


def _is_valid(report: Report) -> bool:
    if not isinstance(report.units, dict) or not isinstance(report.modules, dict):
        return False
    masks = all(isinstance(mask, Tensor) for mask in report.units.values())
    values = all(isinstance(recorded, dict) for recorded in report.modules.values())
    return masks and values and isinstance(report.parameters, Integral) and report.parameters >= 0


def name_of(intervention: Intervention) -> str:
    """Return the registered name under which an intervention was created, or otherwise the name of its class."""
    return intervention._registered_name or type(intervention).__name__


def overrides(intervention: Intervention, hook: str) -> bool:
    """Whether the intervention, or one that it forwards to, implements the hook; a hot loop skips the others."""
    kind = type(intervention)
    body = getattr(kind, hook)
    if any(vars(cls).get(hook) is body for cls in kind.__mro__ if "wrapped" in vars(cls)):
        return any(overrides(part, hook) for part in intervention.wrapped())
    return True
