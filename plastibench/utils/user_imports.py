"""Import the user's own code by name: ``module:name`` or ``file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from plastibench.config.errors import UserError, did_you_mean


def import_own(module: str, where: str) -> ModuleType:
    """Import a module, also from the current folder, or a ``.py`` file.

    Args:
        module: ``package.module`` or a path that ends with ``.py``.
        where: The option that names it, for messages.

    Raises:
        UserError: It does not exist or fails to load.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:  # the console script does not look in the current folder
        sys.path.append(os.getcwd())
    try:
        return _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except (Exception, SystemExit) as error:  # any failure is a bug in the user's code: report it by name
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{where}: cannot import {module} ({reason})") from error


def load_own(target: str, where: str) -> Any:
    """Import ``module:name`` or ``file.py:name`` and return the object.

    Args:
        target: What to import. Naming it is the user's permission to run its code.
        where: The option that names it, for messages.

    Raises:
        UserError: The module or the name does not exist.
    """
    module, _, name = target.rpartition(":")
    if not module or not name:
        raise UserError(f"{where}: '{target}' must have the form module:name or file.py:name")
    found = import_own(module, where)
    if not hasattr(found, name):
        raise UserError(f"{where}: {module} has no '{name}'{did_you_mean(name, dir(found))}")
    return getattr(found, name)


def _import_file(path: Path) -> ModuleType:
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known  # importing it twice would create duplicate classes and register names twice
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
