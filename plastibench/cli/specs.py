"""Make run specs from names and options: one for each combination of seed and intervention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plastibench.cli.arguments import split_names
from plastibench.config import registry
from plastibench.config.errors import UserError, all_of, did_you_mean
from plastibench.config.options import build, flag_name, has_option, options_of
from plastibench.config.spec import RunOptions, RunSpec, check_count, check_declared, seeds_of


def make_specs(tables: Mapping[str, Mapping[str, Any]]) -> list[RunSpec]:
    """Make a checked spec for every combination of seed and intervention, seeds outermost.

    Args:
        tables: ``env``, ``agent``, ``intervention`` and ``run`` to options; the first three also hold a ``name``.

    Raises:
        UserError: A name or an option does not exist, or a value is invalid.
    """
    all_of(checks_of(tables))
    values = {part: _options(table) for part, table in tables.items()}
    names, seeds = split_names(tables["intervention"]["name"]), seeds_of(values["run"].pop("seed", 0))
    return [
        RunSpec.make(
            tables["env"]["name"],
            tables["agent"]["name"],
            name,
            env_options=values["env"],
            agent_options=values["agent"],
            intervention_options=_options_for(name, names, values["intervention"]),
            seed=seed,
            **values["run"],
        )
        for seed in seeds
        for name in names
    ]


def checks_of(tables: Mapping[str, Mapping[str, Any]]) -> list[Callable[[], Any]]:
    """Return the checks that :func:`make_specs` makes before it imports the first class.

    Args:
        tables: As for :func:`make_specs`. Parts without a name are not checked.
    """
    run = _options(tables["run"])
    seed = run.pop("seed", 0)
    checks: list[Callable[[], Any]] = [
        functools.partial(check_declared, part, tables[part]["name"], _options(tables[part]))
        for part in ("env", "agent")
        if tables[part].get("name")
    ]

    def check_counts() -> None:
        check_count(len(seeds_of(seed)) * len(names), "the seeds of all interventions")

    def check_intervention(name: str) -> None:
        check_declared("intervention", name, _options_for(name, names, _options(tables["intervention"])))

    names = split_names(tables["intervention"]["name"])
    checks += [functools.partial(check_intervention, name) for name in names]
    return [*checks, functools.partial(build, RunOptions, run, "run"), check_counts]


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != "name"}


def _options_for(name: str, names: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    """The options that one of several interventions has; an option that none of them has is an error."""
    if len(names) == 1:
        return values
    declared = registry.interventions.declaration

    def has(intervention: str, option: str) -> bool:
        return has_option(declared(intervention), option)

    for option in values:
        if not any(has(other, option) for other in names):
            known = {flag_name(key): None for each in names for key in options_of(declared(each))}
            raise UserError(f"none of {', '.join(names)} has an option '{option}'{did_you_mean(option, known)}")
    return {option: value for option, value in values.items() if has(name, option)}


def resolve_devices(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Replace the device ``auto`` with this machine's device, because the device is part of a run's id."""
    from plastibench.utils.runtime import resolve_device

    return [
        dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=resolve_device(spec.run.device)))
        for spec in specs
    ]
