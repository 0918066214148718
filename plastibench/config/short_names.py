"""Short unique names of runs that say what differs between them: ``rnr·q=0.2·s0``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plastibench.config.options import as_dict, flag_name
from plastibench.config.spec import PARTS, RunSpec

Tables = Mapping[str, Mapping[str, Any]]
_ABBREVIATIONS = {"quantile": "q", "batch_size": "batch"}


def tables_of(spec: RunSpec) -> dict[str, dict[str, Any]]:
    """The names and options of a spec as :func:`short_names` takes them."""
    parts = {part: {"name": getattr(spec, part)[0], **getattr(spec, part)[1]} for part in PARTS}
    return {**parts, "run": as_dict(spec.run)}


def short_names(runs: Sequence[Tables], *, seeds: bool = True) -> list[str]:
    """Name each run by its intervention, the options that differ between runs, and its seed.

    The env and the agent are part of the names only if they differ. An option is included if its value differs between
    runs with the same env, agent or intervention.

    Args:
        runs: For each run the tables ``env``, ``agent`` and ``intervention`` with ``name`` and options, and ``run``.
        seeds: Whether the names contain the seeds. Without them, runs that differ only in the seed share a name.

    Returns:
        A name for each run. If two runs have the same names and options, a number is appended.
    """
    varying = _varying(runs)
    names = [_name(tables, varying, seeds) for tables in runs]
    if not seeds:
        return names
    count, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        if count[name] > 1:
            names[index] = f"{name}·{seen[name]}"
    return names


def own_name(spec: RunSpec) -> str:
    """Name a single run by its intervention and the options that differ from their defaults: ``rnr·q=0.2``."""
    names = {part: getattr(spec, part)[0] for part in PARTS}
    required: dict[str, Any] = {f"{part}_options": spec.required_options(part) for part in PARTS}
    usual = RunSpec.make(**names, **required, seed=spec.run.seed, device=spec.run.device)
    return short_names([tables_of(spec), tables_of(usual)], seeds=False)[0]


def _varying(runs: Sequence[Tables]) -> set[tuple[str, str, str]]:
    """Table, name of the component (of the run: empty) and option, for each option that differs between runs."""
    values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for tables in runs:
        for table, options in tables.items():
            if table in PARTS:
                values[table, "", "name"].add(str(options["name"]))
            for option in options.keys() - {"name"}:
                values[table, str(options.get("name", "")), option].add(repr(options[option]))
    members = Counter((table, str(options.get("name", ""))) for tables in runs for table, options in tables.items())
    having = Counter(
        (table, str(options.get("name", "")), option)
        for tables in runs
        for table, options in tables.items()
        for option in options
    )
    return {
        key
        for key, found in values.items()
        if len(found) > 1 or (key[2] != "name" and having[key] < members[key[:2]])  # some runs do not have the option
    }


def _name(tables: Tables, varying: set[tuple[str, str, str]], seeds: bool) -> str:
    words = [str(tables[part]["name"]) for part in ("env", "agent") if (part, "", "name") in varying]
    words.append(str(tables["intervention"]["name"]))
    shown = [
        (table, option, value)
        for table, options in tables.items()
        for option, value in options.items()
        if (table, str(options.get("name", "")), option) in varying and option not in ("name", "seed")
    ]
    count = Counter(option for _, option, _ in shown)
    for table, option, value in shown:
        label = _ABBREVIATIONS.get(option, flag_name(option))
        words.append(f"{table + '.' if count[option] > 1 else ''}{label}={_value(value)}")
    if seeds:
        words.append(f"s{tables['run']['seed']}")
    return "·".join(words)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
