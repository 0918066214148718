"""Typed options: one dataclass field is a Python argument, a command-line flag and a TOML key."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from plastibench.config.errors import UserError, all_of, did_you_mean
from plastibench.config.own_code import describe as describe_error
from plastibench.config.own_code import is_own, location

T = TypeVar("T")
_LARGEST = 10**15  # larger integers are mistakes, and do not fit into every file format or into memory
_MOST = 1_000  # items of a list
_LONGEST = 100  # characters of a value that are shown in messages
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    formerly: str = "",
    old_values: Mapping[str, str] | None = None,
    names: str = "",
    required: str = "",
) -> Any:
    """Declare a dataclass field as a documented option.

    Args:
        default: The default value.
        help: One line for ``--help``.
        low: Smallest allowed value (inclusive).
        high: Largest allowed value (inclusive).
        formerly: Old name of the option, which is still accepted; must be a literal.
        old_values: Old value to new value; old values are still accepted. Must be a literal.
        names: The kind of registered name that the value is, for example ``intervention``. If the named class is a
            plugin, its code is part of the run's id. The same holds for every value ``module:Class`` that
            ``__post_init__`` imports.
        required: Examples of values, if a run must set the option: ``CartPole-v1 or Acrobot-v1``. Names whose
            registration sets the option do not require it. The default only applies to old results without the option.
    """
    metadata = {"help": help, "low": low, "high": high, "names": names, "required": required}
    return dataclasses.field(
        default=default, metadata={**metadata, "formerly": formerly, "old_values": dict(old_values or {})}
    )


def options_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a class by name: the fields that the constructor of a dataclass accepts."""
    if any(isinstance(value, dataclasses.Field) for base in cls.__mro__ for value in vars(base).values()):
        raise UserError(
            f"{location(cls)}: {cls.__name__} declares options but is not a dataclass; write @dataclass above 'class "
            f"{cls.__name__}', below the line that registers it"
        )
    if not dataclasses.is_dataclass(cls):  # a plugin without options need not be one
        return {}
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


@dataclasses.dataclass(frozen=True)
class Renames:
    """What was renamed among the options of a class.

    Attributes:
        names: Old name to new name.
        values: New name of an option to its old values and the new ones.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace old names and values with new ones."""
        renamed = {self.names.get(name, name): value for name, value in values.items()}
        return {name: _replaced(value, self.values.get(name, {})) for name, value in renamed.items()}

    def undo(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace new names and values with old ones."""
        old_names = {new: old for old, new in self.names.items()}
        old_values = {name: {new: old for old, new in each.items()} for name, each in self.values.items()}
        restored = {name: _replaced(value, old_values.get(name, {})) for name, value in values.items()}
        return {old_names.get(name, name): value for name, value in restored.items()}


def renames_of(cls: type) -> Renames:
    """What was renamed among the options of a class."""
    fields = options_of(cls)
    return Renames(
        {field.metadata["formerly"]: name for name, field in fields.items() if field.metadata.get("formerly")},
        {name: field.metadata["old_values"] for name, field in fields.items() if field.metadata.get("old_values")},
    )


def has_option(cls: type, name: str) -> bool:
    """Return whether a class has an option, by its current or old name, in any spelling."""
    return field_name(name) in {*options_of(cls), *renames_of(cls).names}


def current(cls: type, values: Mapping[str, Any], where: str, *, quiet: bool = False) -> dict[str, Any]:
    """Replace old names and values of options with the current ones, with a line on stderr for each.

    Args:
        cls: The class that has the options.
        values: Option names in any spelling, and their values. Unknown names are kept.
        where: What the options belong to, for messages.
        quiet: Print nothing: the values come from a file that an earlier version wrote.

    Raises:
        UserError: An option is given by its old and by its new name.
    """
    renames = renames_of(cls)
    if not (renames.names or renames.values):
        return dict(values)
    given = {field_name(name) for name in values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        new = renames.names.get(field_name(name))
        if new in given:
            raise UserError(f"{where}: '{flag_name(new)}' is set twice; '{name}' is its old name")
        key = name if new is None else new
        found[key] = _replaced(value, renames.values.get(field_name(key), {}))
        if new is not None and not quiet:
            note_deprecated(f"option '{name}' of {where}", flag_name(new))
        if found[key] is not value and not quiet:
            note_deprecated(f"{flag_name(key)} '{value}' of {where}", str(found[key]))
    return found


@functools.cache  # one line per name and process
def note_deprecated(old: str, new: str) -> None:
    """Print that an old name is deprecated."""
    print(f"plastibench: {old} is deprecated; use '{new}'", file=sys.stderr)


def accept_old_names(cls: type) -> None:
    """Let the constructor of a class also accept old names and values of its options."""
    construct: Any = cls.__init__  # type: ignore[misc]
    if renames_of(cls) == Renames() or hasattr(construct, "__wrapped__"):
        return

    @functools.wraps(construct)
    def accepting(self: Any, *args: Any, **options: Any) -> None:
        construct(self, *args, **current(cls, options, cls.__name__))

    cls.__init__ = accepting  # type: ignore[misc]


def field_name(flag: str) -> str:
    """Convert an option from its command-line form: ``l2-init.strength`` to ``l2_init__strength``."""
    return flag.replace(".", "__").replace("-", "_")


def flag_name(field: str) -> str:
    """Convert a field name to its command-line form; the inverse of :func:`field_name`."""
    return field.replace("__", ".").replace("_", "-")


def build(
    cls: type[T], values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None, quiet: bool = False
) -> T:
    """Construct ``cls(**values)`` after checking every name, type and range.

    Values may be strings (from the command line) or typed (from TOML or Python).

    Args:
        cls: A dataclass whose fields are declared with :func:`option`.
        values: Option names and their values. Old names and values are accepted.
        where: What the options belong to, for error messages, e.g. ``intervention rnr``.
        defaults: Values of options that are not given, if they differ from the defaults of the class.
        quiet: Do not print notes about old names.

    Raises:
        UserError: A name is unknown, a type is wrong or a value is out of range (all in one message), or the class
            itself raised a ``ValueError``.
    """
    kind: Any = cls  # mypy does not treat a class as hashable
    fields, hints = options_of(cls), _hints(kind)

    def check(name: str, value: Any) -> tuple[str, Any]:
        key = field_name(name)
        if key not in fields:
            known = [flag_name(field) for field in fields]
            options = f"options: {', '.join(known)}" if known else "it has no options"
            if key in hints and not dataclasses.is_dataclass(cls):
                options = f"{location(cls)}: is @dataclass missing?"
            raise UserError(f"{where} has no option '{name}'{did_you_mean(name, known)} ({options})")
        return key, checked_value(value, hints[key], fields[key], f"{where}: {name}")

    given = {**(defaults or {}), **current(cls, values, where, quiet=quiet)}
    checked = dict(all_of(functools.partial(check, name, value) for name, value in given.items()))
    try:
        return cls(**checked)
    except ValueError as error:  # from __post_init__, which may check how options fit together
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        if not is_own(cls.__module__):
            raise
        raise UserError(f"{location(cls)}: {cls.__name__} cannot be created: {describe_error(error)}") from error


def checked_value(value: Any, hint: Any, field: dataclasses.Field[Any], where: str) -> Any:
    """Convert a value to the type of an option.

    Raises:
        UserError: It has another type, or is out of range.
    """
    converted = _convert(value, hint, where)
    _check_range(converted, field, where)
    return converted


def matches(pattern: str, name: str) -> bool:
    """Return whether a regular expression from the user is found in a name.

    Raises:
        UserError: The pattern is not a regular expression.
    """
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(f"'{pattern}' is not a regular expression: {error}") from error


def as_dict(options: Any) -> dict[str, Any]:
    """Return the options of an instance as plain TOML values, without those that are ``None``."""
    values = {name: getattr(options, name) for name in options_of(type(options))}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def is_list(cls: type, name: str) -> bool:
    """Return whether an option is a list of values."""
    key = renames_of(cls).names.get(field_name(name), field_name(name))
    return typing.get_origin(without_none(typing.get_type_hints(cls)[key])) is tuple


def describe_type(cls: type, name: str) -> str:
    """Describe the type of an option for ``--help``: ``float``, ``{a,b}``, ``int,…``."""
    return describe(without_none(typing.get_type_hints(cls)[name]))


def describe(hint: Any) -> str:
    """Describe a type for ``--help`` and error messages."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return describe(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    if typing.get_origin(hint) is tuple:
        return f"{describe(typing.get_args(hint)[0])},…"
    return {str: "text"}.get(hint, str(getattr(hint, "__name__", hint)))


@functools.lru_cache(1024)
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _shown(value: Any) -> str:
    """A value in a message, shortened; ``repr`` fails on very large integers."""
    try:
        text = repr(value)
    except ValueError:
        return "too long to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _replaced(value: Any, by: Mapping[str, str]) -> Any:
    return by.get(value, value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    return value


def without_none(hint: Any) -> Any:
    """Return ``X`` for ``X | None``, and any other type as it is."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return inner[0] if len(inner) == 1 else Union[tuple(inner)]  # noqa: UP007 - built at run time
    return hint


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Convert ``value`` to the type ``hint``, or raise a UserError that states the expected type."""
    if hint is Any:
        return value
    optional = without_none(hint) is not hint
    hint = without_none(hint)
    if optional and (value is None or value == "none"):
        return None
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        text = [str(choice) for choice in choices]
        hint = did_you_mean(value, text) if isinstance(value, str) and len(value) <= _LONGEST else ""
        raise UserError(f"{where} is {_shown(value)}{hint} (choose from {', '.join(text)})")
    if origin in (Union, types.UnionType):  # a union of classes, which accepts only instances
        if isinstance(value, typing.get_args(hint)):
            return value
        raise UserError(f"{where} is {_shown(value)}; expected {describe(hint)}")
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"{where} is {_shown(value)}; expected a list")
        if len(items) > _MOST:
            raise UserError(f"{where} has {len(items):,} items; at most {_MOST:,} are allowed")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(item, inner, where) for item in items)
    return _scalar(value, hint, where)


def _scalar(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"{where} is an integer that is too large (at most {_LARGEST:,})")
    several = kind in (int, float) and isinstance(value, str) and "," in value
    hint = "; for several values, run once for each, or write a list in a sweep file" if several else ""
    wrong = UserError(f"{where} is {_shown(value)}; expected {_a(kind)}{hint}")
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        raise wrong
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        if "\0" in value or not _is_text(value):
            raise UserError(f"{where} is {_shown(value)}; expected text in UTF-8 without null characters")
        return value
    if isinstance(value, bool):
        raise wrong
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if kind is int and isinstance(value, float) and value != number:
        raise wrong
    if kind is float and not math.isfinite(number):
        raise UserError(f"{where} is {_shown(value)}; expected a finite number")
    if kind is int and abs(number) > _LARGEST:
        raise UserError(f"{where} is an integer that is too large (at most {_LARGEST:,})")
    return number


def _is_text(value: str) -> bool:
    """Whether a text has no undecodable bytes, such as those of a path that is not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _a(kind: Any) -> str:
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _check_range(value: Any, field: dataclasses.Field[Any], where: str) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and (
            (low is not None and number < low) or (high is not None and number > high)
        ):
            if high is None:
                bounds = f"at least {low}"
            else:
                bounds = f"at most {high}" if low is None else f"between {low} and {high}"
            raise UserError(f"{where} is {number}; it must be {bounds}")
