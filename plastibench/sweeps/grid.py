"""Read the specs of a sweep file: a TOML file in which every list is an axis of a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import build, has_option, is_list
from plastibench.config.spec import PARTS, RunOptions, RunSpec, check_count, check_run_options, read_toml, seeds_of

_TABLES = (*PARTS, "run")


def read_grid(path: Path, checked: Callable[[], object] = lambda: None) -> list[RunSpec]:
    """Read the specs of a sweep file.

    The tables ``[env]``, ``[agent]``, ``[intervention]`` and ``[run]`` apply to all runs. Each ``[[grid]]`` adds a
    group of runs; its own tables of these names take precedence. Every list is an axis of the grid, names and seeds
    included. The result contains each combination once.

    Args:
        path: The file.
        checked: Called when all options are known to be valid, before the first class is imported, which takes seconds.

    Raises:
        UserError: The file cannot be read, or a name, an option or a value in it is invalid.
    """
    content = read_toml(path)
    grids = content.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise UserError(f"{path}: grid must be written as [[grid]]")
    described = [each for grid in grids for each in _combinations(_merged(content, grid, path), path)]
    checked()
    found: dict[str, RunSpec] = {}
    for arguments in described:
        spec = RunSpec.make(**arguments)
        found.setdefault(spec.id, spec)
    if not found:
        raise UserError(f"{path} describes no runs")
    return list(found.values())


def _merged(shared: Mapping[str, Any], grid: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The tables of one grid: the shared ones, updated by its own."""
    tables: dict[str, dict[str, Any]] = {}
    for source in (shared, grid):
        for table, content in source.items():
            if table not in _TABLES:
                raise UserError(f"{path}: no table [{table}]{did_you_mean(table, (*_TABLES, 'grid'))}")
            if not isinstance(content, dict):
                raise UserError(f"{path}: {table} must be a table, as in [{table}]")
            name = tables.get(table, {}).get("name")
            if content.get("name", name) != name:
                tables[table] = {}  # options of another env, agent or intervention do not carry over
            tables[table] = {**tables.get(table, {}), **content}
    for part in ("env", "agent"):
        if "name" not in tables.get(part, {}):
            raise UserError(f"{path}: [{part}] has no name")
    check_run_options(tables.get("run", {}), str(path))
    return tables


def _combinations(tables: dict[str, dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """The arguments of :meth:`RunSpec.make` for each combination of the lists of one grid."""
    tables.setdefault("intervention", {}).setdefault("name", "none")
    run = tables.pop("run", {})
    seeds = seeds_of(run.pop("seed", 0))
    axes: list[list[tuple[str, dict[str, Any]]]] = []
    for part in PARTS:
        names = tables[part]["name"] if isinstance(tables[part]["name"], list) else [tables[part]["name"]]
        values = {key: value for key, value in tables[part].items() if key != "name"}
        choices = []
        for name in names:
            if not isinstance(name, str):
                raise UserError(f"{path}: [{part}] name is {name!r}; expected text")
            cls = getattr(registry, f"{part}s").declaration(name)
            for options in _expanded(cls, values):
                build(cls, options, f"{part} {name}")
                choices.append((name, options))
        axes.append(choices)
    runs = list(_expanded(RunOptions, run))
    check_count(math.prod(map(len, axes)) * len(runs) * len(seeds), str(path))
    for chosen, options, seed in itertools.product(itertools.product(*axes), runs, seeds):
        arguments: dict[str, Any] = {"seed": seed, **options}
        for part, (name, values) in zip(PARTS, chosen, strict=True):
            arguments |= {part: name, f"{part}_options": values}
        yield arguments


def _expanded(cls: type, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All combinations of options given as lists; for an option that is a list itself, the list is one value."""

    def choices(name: str, value: Any) -> list[Any]:
        is_axis = isinstance(value, list) and not (has_option(cls, name) and is_list(cls, name))
        return value if is_axis else [value]

    axes = [choices(name, value) for name, value in values.items()]
    check_count(math.prod(map(len, axes)), "the options of a grid")
    for combination in itertools.product(*axes):
        yield dict(zip(values, combination, strict=True))
