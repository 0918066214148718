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
_CLOSE = 0.75  # similarity above which a method counts as a misspelled hook


def check_method(intervention: Any) -> None:
    """Check the class of an intervention; plastibench's own classes are not checked.

    Raises:
        UserError: The class does not inherit from ``Intervention``, a hook has the wrong arguments, a method name is a
            misspelled hook, or no hook is overridden. The message names file, line and what to change.
    """
    cls = type(intervention)
    if not isinstance(intervention, Intervention):
        raise UserError(f"{location(cls)}: {cls.__name__} must inherit from plastibench.Intervention")
    for part in intervention.wrapped():
        check_method(part)
    if not is_own(cls.__module__):
        return
    defined = [base for base in cls.__mro__ if is_own(base.__module__) and issubclass(base, Intervention)]
    for base in defined:
        for name, member in vars(base).items():
            if name in HOOKS or name in _STATE:
                _check_arguments(base, name, member)
            elif inspect.isfunction(member) and not name.startswith("_"):
                _check_spelling(cls, base, name, member)
    if not any(overrides(intervention, hook) for hook in HOOKS):
        raise UserError(
            f"{location(cls)}: {cls.__name__} overrides no hook, so it would behave like none; define one of "
            f"{', '.join(HOOKS)}"
        )


def _check_arguments(base: type, name: str, member: Any) -> None:
    expected = {**HOOKS, **_STATE}[name]
    shown = f"def {name}({', '.join(('self', *expected))})"
    if not callable(getattr(base, name)):
        raise UserError(f"{location(base)}: {base.__name__}.{name} is not a method; write {shown}")
    bound = getattr(base, name)
    arguments = expected if isinstance(member, classmethod | staticmethod) else ("self", *expected)
    try:
        inspect.signature(bound).bind(*arguments)
    except TypeError:
        raise UserError(
            f"{location(bound)}: {base.__name__}.{name}{inspect.signature(bound)} does not take the hook's arguments; "
            f"write {shown}"
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
