"""The options of a class as its source code declares them, so that they are checked and shown without importing it."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Optional

from plastibench.config.options import option

_SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class SourceOption:
    """One option: ``name: hint = option(default, help, low=…, high=…)``.

    Attributes:
        hint: The type; ``Any`` if it cannot be read from the source.
        default: The default value.
        help: One line for ``--help``.
        low: Smallest allowed value, or None.
        high: Largest allowed value, or None.
    """

    hint: Any
    default: Any
    help: str
    low: float | None = None
    high: float | None = None


def read_options(node: ast.ClassDef, module: ast.Module) -> dict[str, SourceOption | None]:
    """The options that a class declares itself; None stands for one that cannot be read from the source.

    Args:
        node: The class.
        module: Its module, where names of types and constants are looked up.
    """
    names = _assigned(module)
    used = _names_in(node)
    for item in module.body:
        if isinstance(item, ast.ImportFrom) and str(item.module).startswith("plastibench."):
            wanted = {alias.name for alias in item.names} & used
            there = _elsewhere(str(item.module)) if wanted else {}
            names.update({name: there[name] for name in wanted & there.keys()})
    found: dict[str, SourceOption | None] = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            call = item.value
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "option":
                found[item.target.id] = _read(item.annotation, call, names)
            elif not ast.unparse(item.annotation).startswith("ClassVar"):
                found[item.target.id] = None
    return found


def options_class(name: str, options: Mapping[str, SourceOption | None], defaults: Mapping[str, Any]) -> type | None:
    """A dataclass with these options, or None if one of them cannot be read from the source.

    An option whose type alone is unknown has the type ``Any`` there.

    Args:
        name: Name of the class.
        options: What :func:`read_options` found, inherited options included.
        defaults: Options whose defaults differ from the class, by name.
    """
    fields = []
    for key, found in options.items():
        if found is None:
            return None
        fields.append(
            (key, found.hint, option(defaults.get(key, found.default), found.help, low=found.low, high=found.high))
        )
    return dataclasses.make_dataclass(name, fields, frozen=True)


def _read(annotation: ast.expr, call: ast.Call, names: Mapping[str, ast.expr]) -> SourceOption | None:
    try:
        default, help = (_literal(argument, names) for argument in call.args)
        bounds = {str(keyword.arg): _literal(keyword.value, names) for keyword in call.keywords}
    except (ValueError, TypeError):
        return None
    try:
        hint = _hint(annotation, names)
    except ValueError:
        hint = Any
    return SourceOption(hint, default, help, **bounds)


def _assigned(module: ast.Module) -> dict[str, ast.expr]:
    """What the names are that a module assigns."""
    return {
        item.targets[0].id: item.value
        for item in module.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name)
    }


@functools.cache
def _elsewhere(module: str) -> dict[str, ast.expr]:
    """What another module assigns; it is read, not imported."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    return _assigned(ast.parse(Path(spec.origin).read_bytes(), spec.origin))


def _names_in(node: ast.ClassDef) -> set[str]:
    """The names that the annotations of a class contain."""
    annotations = [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
    return {each.id for found in annotations for each in ast.walk(found) if isinstance(each, ast.Name)}


def _literal(node: ast.expr, names: Mapping[str, ast.expr]) -> Any:
    return ast.literal_eval(names[node.id] if isinstance(node, ast.Name) and node.id in names else node)


def _hint(node: ast.expr, names: Mapping[str, ast.expr]) -> Any:
    """The type that an annotation stands for.

    Raises:
        ValueError: It is not one of the types that options usually have.
    """
    if isinstance(node, ast.Name) and node.id in _SCALARS:
        return _SCALARS[node.id]
    if isinstance(node, ast.Name) and node.id in names:
        return _hint(names[node.id], {})
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and ast.unparse(node.right) == "None":
        return Optional[_hint(node.left, names)]  # noqa: UP045 - built at run time
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        return Literal[tuple(ast.literal_eval(each) for each in _elements(node.slice))]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "tuple":
        inner, *rest = _elements(node.slice)
        if [ast.unparse(each) for each in rest] == ["..."]:
            return tuple[_hint(inner, names), ...]  # type: ignore[misc]
    raise ValueError(ast.unparse(node))


def _elements(node: ast.expr) -> Iterable[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]
