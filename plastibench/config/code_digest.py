"""Digests of plugin code, which are part of a run's id: if a plugin changes, its runs get new ids.

The code of a class that is not part of plastibench is

- its source file, for a module outside a package;
- all Python files of its top-level package, for a module in a package;
- the source of the class itself, in a script or a notebook.

The code also includes the modules that these files import, unless they are installed packages, and all base classes.
Packages that plastibench itself uses, such as torch, are excluded: their versions are recorded in the result.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakKeyDictionary

_USED = "plastibench torch torchvision torchrl tensordict timm numpy gymnasium sklearn tensorboard"
_SKIPPED = {*_USED.split(), *sys.stdlib_module_names}
_INSTALLED = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
_IMPORT = re.compile(r"^\s*(?:from|import)\s+([\w., ]+)", re.MULTILINE)
_SHORT = 6  # characters of a digest that tell versions of a plugin apart
_known: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def code_of(cls: type) -> str:
    """Identify the code of a class.

    Returns:
        For a class of plastibench: an empty string, or ``version 2`` if its attribute ``version`` says so. For any
        other class: a digest of its code at the first call with this class.
    """
    if cls.__module__.partition(".")[0] == "plastibench":
        version = getattr(cls, "version", 1)
        return f"version {version}" if version != 1 else ""
    if cls not in _known:
        found = dict(_sources(cls))
        _known[cls] = digest(*(f"{name}:{found[name]}" for name in sorted(found)))
    return _known[cls]


def digest(*texts: str) -> str:
    """A digest of texts, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def short_code(code: str) -> str:
    """Short form for tables: start of a digest, or ``version-2`` for a built-in class; empty without code."""
    return code.replace(" ", "-") if code.startswith("version ") else code[:_SHORT]


def _sources(cls: type) -> Iterator[tuple[str, str]]:
    """Name and digest of each piece of code that a class consists of."""
    seen = set(_SKIPPED)
    for base in cls.__mro__:
        module = sys.modules.get(base.__module__)
        if base.__module__ == "__main__" or (base.__module__ not in seen and not getattr(module, "__file__", None)):
            yield base.__qualname__, _class_source(base)
        else:
            yield from _module_sources(base.__module__, seen)


def _module_sources(name: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """The Python files of a module or of its top-level package, and of the user's own modules that these import."""
    top = name.partition(".")[0]
    if top in seen:
        return
    seen.add(top)
    for root, path in _files(top):
        found, imported = _read(path)
        yield f"{top}/{path.relative_to(root).as_posix()}", found
        for other in sorted(imported - seen):
            if (files := _files(other)) and not any(files[0][0].is_relative_to(folder) for folder in _INSTALLED):
                yield from _module_sources(other, seen)


def _files(top: str) -> list[tuple[Path, Path]]:
    """The Python files of a top-level module or package, which need not be imported yet, with its folder."""
    module = sys.modules.get(top)
    spec = getattr(module, "__spec__", None)
    if spec is None and module is None:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            return []
    folders = getattr(spec, "submodule_search_locations", None)
    if folders:
        return [(Path(folder), path) for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    file = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    return [(Path(file).parent, Path(file))] if file and file.endswith(".py") else []


def _read(path: Path) -> tuple[str, frozenset[str]]:
    """Digest of a file, and the top-level modules that it imports."""
    try:
        state = path.stat()
        return _read_state(str(path), state.st_mtime_ns, state.st_size)
    except OSError:  # deleted, or inside an archive
        return "unreadable", frozenset()


@functools.lru_cache(4096)
def _read_state(path: str, modified: int, size: int) -> tuple[str, frozenset[str]]:
    content = Path(path).read_bytes()
    imported: set[str] = set()
    for modules in _IMPORT.findall(content.decode(errors="replace")):
        imported.update(each.strip().partition(" ")[0].partition(".")[0] for each in modules.split(","))
    return hashlib.sha256(content).hexdigest()[:16], frozenset(imported - {""})


def _class_source(cls: type) -> str:
    """A digest of the source of one class, or of its compiled functions if the source is not available."""
    try:
        return digest(inspect.getsource(cls))
    except (OSError, TypeError):
        return digest(
            *(f"{name}={_compiled(value)}" for name, value in sorted(vars(cls).items()) if _counts(name, value))
        )


def _counts(name: str, value: object) -> bool:
    return not name.startswith("__") or hasattr(value, "__code__")


def _compiled(value: object) -> str:
    code = getattr(value, "__code__", value)
    if not isinstance(code, types.CodeType):
        return repr(value) if isinstance(value, str | int | float | tuple) else type(value).__name__
    return f"{code.co_code.hex()} {code.co_names} {[_compiled(constant) for constant in code.co_consts]}"
