"""Check a method's class for mistakes that would make it behave like ``none`` or fail in the middle of a run."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from plastibench.config.errors import UserError
from plastibench.config.own_code import is_own, location
from plastibench.interventions.base import Intervention, overrides

#: Hook to the names of its arguments after ``self``.
HOOKS = {
    "prepare": ("network",),
    "penalty": ("network", "batch"),
    "before_update": ("network",),
    "after_update": ("network",),
    "intervene": ("network", "batch"),
    "evaluated": ("network",),
}
_STATE = {"wrapped": (), "state_dict": (), "load_state_dict": ("state",)}
_FACTS = {"kind": str, "extra_memory": float, "extra_compute": str}  # class attributes that are listed
_CLOSE = 0.75  # similarity above which a method counts as a misspelled hook


def check_method(intervention: Any) -> None:
    """Check an intervention and those that it wraps; plastibench's own classes are not checked.

    Raises:
        UserError: As :func:`check_class`, or ``wrapped`` does not return interventions.
    """
    cls = type(intervention)
    check_class(cls)
    parts = intervention.wrapped()
    if not isinstance(parts, tuple) or not all(isinstance(part, Intervention) for part in parts):
        raise UserError(f"{location(cls.wrapped)}: {cls.__name__}.wrapped must return a tuple of interventions")
    for part in parts:
        check_method(part)
    if is_own(cls.__module__) and not any(overrides(intervention, hook) for hook in HOOKS):
        raise UserError(
            f"{location(cls)}: {cls.__name__} overrides no hook, so it would behave like none; define one of "
            f"{', '.join(HOOKS)}"
        )


def check_class(cls: Any) -> None:
    """Check the class of an intervention that is not part of plastibench.

    Raises:
        UserError: The class does not inherit from ``Intervention``, a hook has the wrong arguments, a method name is a
            misspelled hook, or no hook is overridden. The message names file, line and what to change.
    """
    if not (isinstance(cls, type) and issubclass(cls, Intervention)):
        raise UserError(f"{location(cls)}: {getattr(cls, '__name__', cls)} must inherit from plastibench.Intervention")
    if not is_own(cls.__module__):
        return
    for name, kind in _FACTS.items():
        if not isinstance(getattr(cls, name, kind()), kind | int if kind is float else kind):
            raise UserError(f"{location(cls)}: {cls.__name__}.{name} must be a value of type {kind.__name__}")
    defined = [base for base in cls.__mro__ if is_own(base.__module__) and issubclass(base, Intervention)]
    for base in defined:
        for name, member in vars(base).items():
            if name in HOOKS or name in _STATE:
                _check_arguments(base, name, member)
            elif inspect.isfunction(member) and not name.startswith("_"):
                _check_spelling(cls, base, name, member)


def _check_arguments(base: type, name: str, member: Any) -> None:
    expected = {**HOOKS, **_STATE}[name]
    shown = f"def {name}({', '.join(('self', *expected))})"
    if not callable(getattr(base, name)):
        raise UserError(f"{location(base)}: {base.__name__}.{name} is not a method; write {shown}")
    bound = getattr(base, name)
    if inspect.iscoroutinefunction(bound) or inspect.isgeneratorfunction(inspect.unwrap(bound)):
        raise UserError(f"{location(bound)}: {base.__name__}.{name} must be an ordinary function: {shown}")
    arguments = expected if isinstance(member, classmethod | staticmethod) else ("self", *expected)
    try:
        inspect.signature(bound).bind(*arguments)
    except (TypeError, ValueError):  # ValueError: a method without any argument
        given = inspect.signature(getattr(member, "__func__", member))
        raise UserError(
            f"{location(bound)}: {base.__name__}.{name}{given} does not take the hook's arguments; write {shown}"
        ) from None


def _check_spelling(cls: type, base: type, name: str, member: Any) -> None:
    """Refuse a method whose name looks like a misspelled hook."""
    plain = {hook.replace("_", ""): hook for hook in (*HOOKS, "state_dict", "load_state_dict")}
    close = difflib.get_close_matches(name.replace("_", "").lower(), plain, n=1, cutoff=_CLOSE)
    if not close:
        return
    hook = plain[close[0]]
    if getattr(cls, hook) is getattr(Intervention, hook):
        raise UserError(
            f"{location(member)}: plastibench never calls {base.__name__}.{name}; did you mean '{hook}'? (if it is a "
            "helper method, start its name with _)"
        )
