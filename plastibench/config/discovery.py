"""Find registered classes by reading source files, so that listing names imports nothing but the standard library."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plastibench.config.declarations import Declared, declared_options


@dataclass(frozen=True)
class Registration:
    """One register decorator: a name, its summary, and the options that it sets differently from the class."""

    name: str
    summary: str
    defaults: Mapping[str, Any]


@dataclass(frozen=True)
class SourceClass:
    """A registered class, as read from its source code.

    Attributes:
        target: ``"module:Class"``.
        registrations: Its register decorators, from top to bottom.
        bases: Names of its base classes.
        attributes: Class attributes with a literal value, by name; inherited ones included.
        methods: Name of the class that defines each method; inherited ones included.
        options: Its options; inherited ones included.
    """

    target: str
    registrations: tuple[Registration, ...] = ()
    bases: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    options: Declared = field(default_factory=dict)


def registered_classes(package: str, decorator: str) -> list[SourceClass]:
    """The classes in the modules of a package that carry a register decorator, in order of file and line.

    Base classes are looked up by name within the package. The decorator's arguments must be literals.

    Args:
        package: A package in the file system, for example ``plastibench.agents``. It is not imported.
        decorator: Name of the decorator, for example ``register_agent``.

    Raises:
        ValueError: An argument of a decorator is not a literal.
    """
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not a package"
    classes: dict[str, SourceClass] = {}
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
        for node in ast.parse(path.read_bytes(), str(path)).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = _read(node, f"{package}.{path.stem}", decorator, path)
    return [_with_inherited(found, classes) for found in classes.values() if found.registrations]


def summary_of(docstring: str | None) -> str:
    """The first line of a docstring, without the full stop."""
    return (docstring or "").partition("\n")[0].strip().removesuffix(".")


def _read(node: ast.ClassDef, module: str, decorator: str, path: Path) -> SourceClass:
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == decorator]
    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
    return SourceClass(
        target=f"{module}:{node.name}",
        registrations=tuple(_registration(call, summary_of(ast.get_docstring(node)), path) for call in calls),
        bases=tuple(base.id for base in node.bases if isinstance(base, ast.Name)),
        attributes=dict(_literal_attributes(node)),
        methods=dict.fromkeys(methods, node.name),
        options=declared_options(node, path),
    )


def _registration(call: ast.Call, first_line: str, path: Path) -> Registration:
    try:
        name, *summary = [ast.literal_eval(argument) for argument in call.args]
        defaults = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except ValueError as error:
        raise ValueError(f"{path}:{call.lineno}: the arguments of a register decorator must be literals") from error
    return Registration(name, summary[0] if summary else first_line, defaults)


def _literal_attributes(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Assignments without annotation, as ``kind = "units"``: a dataclass has its options annotated."""
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            try:
                yield item.targets[0].id, ast.literal_eval(item.value)
            except ValueError:
                continue


def _with_inherited(found: SourceClass, classes: Mapping[str, SourceClass]) -> SourceClass:
    attributes, methods, options = dict(found.attributes), dict(found.methods), dict(found.options)
    for base in found.bases:
        if base in classes:
            inherited = _with_inherited(classes[base], classes)
            attributes = {**inherited.attributes, **attributes}
            methods = {**inherited.methods, **methods}
            options = {**inherited.options, **options}
    return replace(found, attributes=attributes, methods=methods, options=options)
