"""From names and options to specs of runs: every combination of seed and intervention."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from plastibench.cli.arguments import split_names
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.options import build, has_option
from plastibench.config.spec import RunSpec, check_count, seeds_of


def make_specs(tables: Mapping[str, Mapping[str, Any]]) -> list[RunSpec]:
    """Make a checked spec for every combination of seed and intervention, seeds outermost.

    Args:
        tables: ``env``, ``agent``, ``intervention`` and ``run`` to options; the first three also hold a ``name``.

    Raises:
        UserError: A name or an option does not exist, or a value is invalid.
    """
    values = {part: {k: v for k, v in table.items() if k != "name"} for part, table in tables.items()}
    names = split_names(tables["intervention"]["name"])
    seeds = seeds_of(values["run"].pop("seed", 0))
    check_count(len(seeds) * len(names), "the seeds of all interventions")
    for name in names:  # all of them before the first class is imported, which takes seconds
        entry, known = registry.interventions[name], registry.interventions.declaration(name)
        given = _options_for(name, names, values["intervention"])
        build(known, given, f"intervention {name}", entry.defaults, quiet=True)
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


def _options_for(name: str, names: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    """The options that one of several interventions has; an option that none of them has is an error."""
    if len(names) == 1:
        return values

    def has(intervention: str, option: str) -> bool:
        return has_option(registry.interventions.declaration(intervention), option)

    for option in values:
        if not any(has(other, option) for other in names):
            raise UserError(f"none of {', '.join(names)} has an option '{option}'")
    return {option: value for option, value in values.items() if has(name, option)}


def resolve_devices(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Replace ``auto`` by the device of this machine: the device is part of the id of a run."""
    from plastibench.utils.runtime import resolve_device

    return [
        dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=resolve_device(spec.run.device)))
        for spec in specs
    ]
