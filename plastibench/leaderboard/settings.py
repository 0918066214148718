"""Which runs may be compared: the same task stream, data, budget and agent; runs of one method stand together."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plastibench.config.errors import UserError
from plastibench.results.files import find_results, read_result
from plastibench.utils.tables import printable

Result = dict[str, Any]
BASE = "none"
_NAMED = 4  # commits, machines and the like
_LONG = ("tasks", "returns", "events", "interventions", "plasticity")


@dataclass(frozen=True)
class Entry:
    """Runs that differ in their seed alone.

    Attributes:
        name: The intervention with its options; no other entry of the contest is called so.
        runs: Results by seed.
        apart: Why it cannot be ranked among the others; empty where it can.
    """

    name: str
    runs: Mapping[int, Result]
    apart: str = ""

    def scores(self, name: str) -> dict[int, float]:
        """A figure of the summary by seed, where there is one."""
        values = {seed: run["summary"].get(name) for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Setting:
    """Entries that may be compared.

    Attributes:
        env: The task stream, with the options that set it apart.
        agent: Likewise.
        acts: Whether the agent acts in an environment, so that returns count and not accuracies.
        entries: What was run, in order of first appearance.
        differs: Why runs with the same names of env and agent are not in here; empty where there are none.
    """

    env: str
    agent: str
    acts: bool
    entries: list[Entry] = field(repr=False)
    differs: str = ""

    @property
    def title(self) -> str:
        """Env and agent."""
        return f"{self.env}, {self.agent}"

    @property
    def score(self) -> str:
        """The figure of the summary by which entries are ranked."""
        return "final-return" if self.acts else "final-accuracy"

    @property
    def base(self) -> Entry | None:
        """What nothing was done to; of several, the one with most seeds."""
        found = [entry for entry in self.entries if label(next(iter(entry.runs.values()))) == BASE]
        return max(found, key=lambda entry: len(entry.runs), default=None)


def load(runs_dir: Path, lean: bool = False) -> list[Result]:
    """All results below a folder; one that cannot be used is named on stderr and left out.

    So is a second result of a run, unless the two are equal. Each knows its folder as ``result["folder"]``.

    Args:
        runs_dir: Where to look.
        lean: Without what only figures need, task by task: thousands of results then fit into memory.

    Raises:
        UserError: There is no such folder, or no result in it.
    """
    if not runs_dir.is_dir():
        raise UserError(f"no folder {runs_dir}; run something first, or name another with --runs-dir")
    found: dict[str, Result] = {}
    for path in find_results(runs_dir):
        try:
            result = read_result(path)
            first = found.get(result["id"], {"schema": 0, "summary": result["summary"], "folder": None})
            if first["summary"] != result["summary"]:
                raise UserError(f"{path} is a second and different result of the run in {first['folder']}")
            if first["schema"] >= result["schema"]:  # the same run once more; the newer schema knows more of it
                continue
        except UserError as error:
            print(f"plastibench: left out: {error}", file=sys.stderr)
        else:
            if lean:
                result = {key: [] if key in _LONG else value for key, value in result.items()}
            found[result["id"]] = {**result, "folder": path.parent}
    if not found:
        raise UserError(f"no finished run in {runs_dir}; run something first, or name another with --runs-dir")
    return list(found.values())


def contests(found: Iterable[Result]) -> list[Setting]:
    """Sort results into contests, by the names of env and agent; see :class:`Setting`."""
    named: dict[tuple[str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in found:
        named[result["env"], result["agent"]][_terms(result)].append(result)
    made = []
    for _, by_terms in sorted(named.items()):
        variants = _with_data(list(by_terms.values()))
        differing = _differences([runs[0] for runs in variants])
        for runs in variants:
            env, agent = (label(runs[0], part, differing) for part in ("env", "agent"))
            facts = {**conditions(runs[0]), "data": data_of(runs[0]) or "unknown"}
            extra = [f"{key}={value}" for key, value in facts.items() if key in differing]
            differs = ""
            if differing:
                differs = f"not comparable with other runs of {runs[0]['env']} and {runs[0]['agent']}, which differ in "
                differs += ", ".join(differing)
            made.append(Setting(" ".join([env, *extra]), agent, acts(runs[0]), _entries(runs), differs))
    return made


def acts(result: Result) -> bool:
    """Whether the agent of a run acted in an environment, so that returns count and not accuracies."""
    return "returns" in result


def by_group(found: Iterable[Result]) -> list[list[Result]]:
    """Results of the same spec together, in order of first appearance; seeds in order."""
    groups: dict[str, list[Result]] = {}
    for result in found:
        groups.setdefault(result["group"], []).append(result)
    return [sorted(runs, key=lambda run: run["seed"]) for runs in groups.values()]


def label(result: Result, part: str = "intervention", also: Iterable[str] = ()) -> str:
    """The name of an env, agent or intervention, with the options that differ from what it stands for.

    Args:
        result: Of a run.
        part: ``env``, ``agent`` or ``intervention``.
        also: Options shown in any case, as ``env.epochs``.
    """
    changed = {**result["changed"][part]}
    for option in also:
        of, _, name = option.partition(".")
        if of == part and name in result["options"][part]:
            changed[name] = result["options"][part][name]
    if part == "intervention":
        if result["every"]:
            changed["every"] = result["every"]
        changed.update(result.get("schedule", {}))
    words = [result[part], *(f"{key.replace('__', '.')}={_shown(value)}" for key, value in changed.items())]
    return printable(" ".join(words))  # in one line, whatever it holds


def origin(found: Sequence[Result]) -> str:
    """Where results come from: code, versions, hardware, threads, precision; several of each if they differ."""
    made = [run["origin"] for run in found]
    facts = {
        "commit": [one["commit"] or "unknown" for one in made],
        "torch": [one["versions"]["torch"] for one in made],
        "": [f"{one['hardware']['processor']}, {one['hardware'].get('cores', '?')} cores" for one in made],
        "on": [one["hardware"]["device"] for one in made],
        "threads each:": [str(one["threads"]) for one in made],
        "precision": [one["precision"] for one in made],
    }
    told = [f"{name} {_several(values)}".strip() for name, values in facts.items()]
    return printable(f"{len(made)} runs: {'; '.join(told)}")


def _several(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return " and ".join(different[:_NAMED]) + more


# What must be the same -------------------------------------------------------------------------------------------


def conditions(result: Result) -> dict[str, Any]:
    """What is neither option of env or agent nor data, and must be the same all the same."""
    return {"version": result.get("scenario", {}).get("version", 1)}


def _terms(result: Result) -> str:
    options = {part: result["options"][part] for part in ("env", "agent")}
    return json.dumps([options, conditions(result), acts(result)], sort_keys=True)


def _with_data(variants: list[list[Result]]) -> list[list[Result]]:
    """Split each by its data, where more than one is stated; results of schema 1 do not say."""
    split = []
    for runs in variants:
        stated = {data_of(run) for run in runs if data_of(run)}
        if len(stated) < 2:
            split.append(runs)
            continue
        by_data: dict[str | None, list[Result]] = defaultdict(list)
        for run in runs:
            by_data[data_of(run)].append(run)
        split += by_data.values()
    return split


def data_of(result: Result) -> str | None:
    """The digest of the data, where it is stated."""
    data: str | None = result.get("scenario", {}).get("data")
    return data


def _differences(samples: Sequence[Result]) -> list[str]:
    """In what the contests with the same names differ: options, version of the scenario, data."""
    if len(samples) < 2:
        return []
    facts: list[dict[str, Any]] = []
    for sample in samples:
        options = {f"{p}.{key}": value for p in ("env", "agent") for key, value in sample["options"][p].items()}
        facts.append({**options, **conditions(sample), "data": data_of(sample)})
    keys = dict.fromkeys(key for fact in facts for key in fact)
    missing = object()
    return [key for key in keys if any(fact.get(key, missing) != facts[0].get(key, missing) for fact in facts)]


# Entries ---------------------------------------------------------------------------------------------------------


def _entries(runs: Sequence[Result]) -> list[Entry]:
    groups = by_group(runs)
    names = [label(group[0]) for group in groups]
    usual = _usual_updates(runs)
    found = []
    for name, group in zip(names, groups, strict=True):
        if names.count(name) > 1:
            alike = [other[0] for other, named in zip(groups, names, strict=True) if named == name]
            name = f"{name} {_run_options(group[0], alike)}"
        updates = {run["cost"].get("updates") for run in group} - {None, usual}
        apart = f"{max(updates):,} updates, the others {usual:,}" if updates else ""
        found.append(Entry(name, {run["seed"]: run for run in group}, apart))
    return found


def _usual_updates(runs: Sequence[Result]) -> int:
    """The budget: updates of the base, or of most runs."""
    base = [run for run in runs if label(run) == BASE] or runs
    return int(Counter(run["cost"].get("updates", 0) for run in base).most_common(1)[0][0])


def _run_options(result: Result, alike: Sequence[Result]) -> str:
    """What tells entries apart that have the same label: options of the run, or at last the group's own digest."""
    options = [other.get("run", {}) for other in alike]
    keys = [key for key in dict.fromkeys(k for o in options for k in o) if key not in ("seed", "every", "metrics")]
    differing = [key for key in keys if any(o.get(key) != options[0].get(key) for o in options)]
    kept = {key: result.get("run", {}).get(key, "default") for key in differing}
    shown = " ".join(f"{key}={_shown(value)}" for key, value in kept.items())
    return f"{shown or 'run'} ({result['group'].rpartition('_')[2]})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
