"""Locate an error or a definition by file and line, preferably in the user's own code."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent
_OURS = (_PACKAGE, _PACKAGE.parent / "envs", _PACKAGE.parent / "agents")
_LONGEST = 500  # characters of a message
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def is_own(module: str) -> bool:
    """Whether a module, such as ``cls.__module__``, is not part of plastibench."""
    return module.partition(".")[0] != "plastibench"


def is_library(name: str) -> bool:
    """Whether a module of this name belongs to Python, plastibench or an installed package."""
    if name in (*sys.stdlib_module_names, "__main__") or not is_own(name):
        return True
    return "." not in name and PathFinder.find_spec(name, list(map(str, _LIBRARIES))) is not None


def location(what: Any) -> str:
    """Where a class or function is defined, such as ``shrink.py:12``; its name if the location is unknown."""
    function = inspect.unwrap(what) if callable(what) else what
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return f"{_shown(code.co_filename)}:{code.co_firstlineno}"
    try:
        return f"{_shown(inspect.getfile(what))}:{inspect.getsourcelines(what)[1]}"
    except (OSError, TypeError):
        return str(getattr(what, "__qualname__", what))


def describe(error: BaseException) -> str:
    """Describe an unexpected error in one line, with the location in the user's code that caused it.

    ``shrink.py:17: IndexError in intervene: index out of range``. If no user code was involved, the location is in
    plastibench. If the location is unknown, the line contains only the type and message.
    """
    kind, message = type(error).__name__, _message(error)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}: {kind}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _is_below(frame.filename, _OURS)]
    for frame in (_own(frames) or ours)[-1:]:
        inside = "" if frame.name == "<module>" else f" in {frame.name}"
        return f"{_shown(frame.filename)}:{frame.lineno}: {kind}{inside}: {message}".removesuffix(": ")
    return f"{kind}: {message}".removesuffix(": ")


def passed_own_code(error: BaseException) -> bool:
    """Whether an error was raised by the user's code, or by what it called."""
    return bool(_own(traceback.extract_tb(error.__traceback__)))


def raised_by_own_code(error: BaseException) -> bool:
    """Whether the user's code, or a library that it called, raised an error; not plastibench below the user's code."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if _is_below(frame.filename, _OURS) or not _is_below(frame.filename, _LIBRARIES)
    ]
    return bool(_own(traceback.StackSummary.from_list(frames[-1:])))


def _own(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    return [frame for frame in frames if not _is_below(frame.filename, (*_OURS, *_LIBRARIES))]


def _message(error: BaseException) -> str:
    try:
        sentence = isinstance(error, KeyError) and error.args and " " in str(error.args[0])  # str() would quote it
        text = " ".join(str(error.args[0] if sentence else error).split())
    except Exception:  # the __str__ of a user's class
        return ""
    return text.encode(errors="backslashreplace").decode() if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is_below(file: str, folders: tuple[Path, ...]) -> bool:
    if file.startswith("<"):  # <frozen importlib._bootstrap>, <string>
        return True
    path = Path(file).resolve()
    return any(path.is_relative_to(folder) for folder in folders)


def _shown(file: str) -> str:
    """The path from the current folder if the file is below it."""
    path = Path(file).resolve()
    here = Path(os.getcwd()).resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
