"""Check what the class of a plugin declares, so that mistakes are reported with file and line before any run."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, Union

from plastibench.config.errors import UserError
from plastibench.config.options import checked_value, flag_name, options_of, without_none
from plastibench.config.own_code import describe, location
from plastibench.config.registry import REGISTRIES, Entry

_TYPES = "int, float, bool, str, Literal, tuple[int, ...], and these with | None"


def check_declared(entry: Entry) -> None:
    """Check types, defaults and ranges of the options of a registered class.

    Raises:
        UserError: An option is declared incorrectly. The message names the file, the line and the option.
    """
    cls: Any = entry.load()
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:  # whatever the annotation evaluates to
        raise UserError(f"{location(cls)}: a type in {cls.__name__} is not valid: {describe(error)}") from error
    fields = options_of(cls)
    if unknown := sorted({*entry.defaults} - {*fields}):
        raise UserError(f"{location(cls)}: '{entry.name}' sets '{unknown[0]}', but {cls.__name__} has no such option")
    for name, field in fields.items():
        where = f"{location(cls)}: option '{flag_name(name)}' of {cls.__name__}"
        _check_metadata(field, where)
        if (old := field.metadata.get("formerly")) in fields:
            raise UserError(f"{where}: formerly='{old}' is the name of an option, not an old name")
        if not _is_supported(hints[name]):
            raise UserError(f"{where} has an unsupported type; use {_TYPES}")
        for value in (field.default, entry.defaults.get(name, dataclasses.MISSING)):
            if value is not dataclasses.MISSING and value != "*":
                _check_default(value, hints[name], field, where)


def _check_default(value: Any, hint: Any, field: dataclasses.Field[Any], where: str) -> None:
    found = checked_value(value, hint, field, f"{where}: the default")
    if dataclasses.is_dataclass(found):
        return
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: the default cannot be stored in TOML; use a number, a string or a tuple") from error


def _check_metadata(field: dataclasses.Field[Any], where: str) -> None:
    given = field.metadata
    for key in ("help", "formerly"):
        if not isinstance(given.get(key, ""), str):
            raise UserError(f"{where}: {key} must be a string")
    for key in ("low", "high"):
        if not isinstance(given.get(key) or 0, int | float):
            raise UserError(f"{where}: {key} must be a number")
    if given.get("names") and given["names"] not in REGISTRIES:
        raise UserError(f"{where}: names must be one of {', '.join(REGISTRIES)}")


def _is_supported(hint: Any) -> bool:
    hint = without_none(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return bool(arguments)
    if origin is tuple:
        return bool(arguments) and _is_supported(arguments[0])
    if origin in (Union, types.UnionType):
        return all(isinstance(each, type) for each in arguments)
    return hint in (bool, int, float, str, Any) or dataclasses.is_dataclass(hint)
