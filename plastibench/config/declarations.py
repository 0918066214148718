"""Read the options of a class from its source code, so that they can be checked and listed without importing it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import typing
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Optional

from plastibench.config.options import field_name, option, options_of

_SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
Declared = dict[str, tuple[Any, Any]]  # option name to type and dataclass field


def declared_options(node: ast.ClassDef, path: Path) -> Declared:
    """The options of a class, without inherited ones.

    Args:
        node: The class in the source code. Its options must be literals.
        path: The file, in which names of types are looked up.
    """
    found: Declared = {}
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        call = item.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == option.__name__:
            given = [ast.literal_eval(argument) for argument in call.args]
            more = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
            found[item.target.id] = _type(item.annotation, path), option(*given, **more)
    return found


def make_class(name: str, options: Declared) -> type:
    """Create a dataclass that has these options and no behavior."""
    fields = [
        (option_name, kind, dataclasses.field(default=field.default, metadata=field.metadata))
        for option_name, (kind, field) in options.items()
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True)


def prefixed(name: str, cls: type, defaults: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The options of a part of a combination: name with the part's name as prefix, type, and dataclass field.

    Args:
        name: Registered name of the part.
        cls: Its class, or a class with the same options.
        defaults: Options that the name sets differently from the class.
    """
    hints, prefix, fields = typing.get_type_hints(cls), f"{field_name(name)}__", []
    for field in options_of(cls).values():
        old = field.metadata.get("formerly")
        metadata = {**field.metadata, "formerly": f"{prefix}{old}" if old else ""}
        copied = dataclasses.field(default=defaults.get(field.name, field.default), metadata=metadata)
        fields.append((prefix + field.name, hints[field.name], copied))
    return fields


def _type(node: ast.expr, path: Path) -> Any:
    """Return the type that an annotation names; ``Any`` for classes."""
    if isinstance(node, ast.Name):
        return _SCALARS[node.id] if node.id in _SCALARS else _alias(node.id, path)
    if isinstance(node, ast.BinOp):  # X | None, or X | SomeClass
        left = _type(node.left, path)
        is_optional = isinstance(node.right, ast.Constant) and node.right.value is None
        return Optional[left] if is_optional else left  # noqa: UP045 - built at run time
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return Literal[tuple(ast.literal_eval(each) for each in inside)]
        if node.value.id == "tuple":
            return tuple[_type(inside[0], path), ...]  # type: ignore[misc]
    return Any


def _alias(name: str, path: Path) -> Any:
    """Return the type that a name refers to in a module, which may import it from another module of plastibench."""
    tree = _parsed(path)
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _type(node.value, path)
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            origin = _file_of(node.module or "")
            return Any if origin is None else _alias(name, origin)
    return Any


def _file_of(module: str) -> Path | None:
    """The file of a module of plastibench, found without importing it."""
    package, _, name = module.rpartition(".")
    if not module.startswith("plastibench.") or package.count(".") != 1:
        return None
    spec = find_spec(package)
    folders: Iterable[str] = (spec and spec.submodule_search_locations) or ()
    return next((file for folder in folders if (file := Path(folder) / f"{name}.py").is_file()), None)


@functools.lru_cache(256)
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))
