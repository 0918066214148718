"""Plugins: user modules and files that register envs, agents and interventions."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from plastibench.config.class_declarations import check_declared
from plastibench.config.errors import UserError
from plastibench.config.own_code import describe, is_library
from plastibench.config.registry import REGISTRIES, Entry


def import_plugins(plugins: Sequence[str]) -> None:
    """Import modules by name and ``.py`` files by path.

    Raises:
        UserError: A plugin does not exist or fails to load.
    """
    known = _custom_entries()
    for plugin in plugins:
        is_file = plugin.endswith(".py")
        if is_file and not Path(plugin).is_file():
            raise UserError(f"--plugin {plugin}: no such file")
        try:
            if is_file:
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
            for noun, entry in [each for each in _custom_entries() if each not in known]:
                _check(noun, entry)
        except (Exception, SystemExit) as error:  # any failure is a bug in the plugin: report it by name
            reason = str(error) if isinstance(error, UserError) else describe(error)
            raise UserError(f"--plugin {plugin} cannot be loaded: {reason}") from error


def _custom_entries() -> list[tuple[str, Entry]]:
    return [(noun, entry) for noun, known in REGISTRIES.items() for entry in known.custom()]


def _check(noun: str, entry: Entry) -> None:
    """Check what a class declares and, for an intervention, its hooks."""
    check_declared(entry)
    if noun == "intervention":
        from plastibench.interventions.class_checks import check_class  # imports torch

        check_class(entry.load())


def _import_file(path: Path) -> None:
    if is_library(path.stem):  # it would replace that module for everything that imports it later
        raise UserError(f"--plugin {path}: a library named '{path.stem}' is already installed; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
