"""Which runs may be compared: the same task stream, data, budget and agent; runs of one method stand together."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plastibench.results.result import Result
from plastibench.utils.tables import printable

BASE = "none"
_NAMED = 4  # commits, machines and the like


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
        """A value of the summary by seed, without the seeds that do not have it."""
        values = {seed: getattr(run.summary, name) for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Setting:
    """Entries that may be compared.

    Attributes:
        env: The task stream, with the options that set it apart.
        agent: Likewise.
        is_rl: Whether an RL agent was trained, so that returns are compared instead of accuracies.
        entries: What was run, in order of first appearance.
        differs: Why runs with the same names of env and agent are not in here; empty where there are none.
    """

    env: str
    agent: str
    is_rl: bool
    entries: list[Entry] = field(repr=False)
    differs: str = ""

    @property
    def title(self) -> str:
        """Env and agent."""
        return f"{self.env}, {self.agent}"

    @property
    def score(self) -> str:
        """The figure of the summary by which entries are ranked."""
        return "final_return" if self.is_rl else "final_accuracy"

    @property
    def base(self) -> Entry | None:
        """What nothing was done to; of several, the one with most seeds."""
        found = [entry for entry in self.entries if label(next(iter(entry.runs.values()))) == BASE]
        return max(found, key=lambda entry: len(entry.runs), default=None)


def contests(found: Iterable[Result]) -> list[Setting]:
    """Sort results into contests, by the names of env and agent; see :class:`Setting`."""
    named: dict[tuple[str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in found:
        named[result.env, result.agent][_terms(result)].append(result)
    made = []
    for _, by_terms in sorted(named.items()):
        variants = _with_data(list(by_terms.values()))
        differing = _differences([runs[0] for runs in variants])
        for runs in variants:
            env, agent = (label(runs[0], part, differing) for part in ("env", "agent"))
            facts = {"version": runs[0].env_version, "data": runs[0].data_digest or "unknown"}
            extra = [f"{key}={value}" for key, value in facts.items() if key in differing]
            differs = ""
            if differing:
                differs = f"not comparable with other runs of {runs[0].env} and {runs[0].agent}, which differ in "
                differs += ", ".join(differing)
            made.append(Setting(" ".join([env, *extra]), agent, runs[0].is_rl, _entries(runs), differs))
    return made


def by_group(found: Iterable[Result]) -> list[list[Result]]:
    """Results of the same spec together, in order of first appearance; seeds in order."""
    groups: dict[str, list[Result]] = {}
    for result in found:
        groups.setdefault(result.group, []).append(result)
    return [sorted(runs, key=lambda run: run.seed) for runs in groups.values()]


def label(result: Result, part: str = "intervention", also: Iterable[str] = ()) -> str:
    """The name of an env, agent or intervention, with the options that differ from what it stands for.

    Args:
        result: Of a run.
        part: ``env``, ``agent`` or ``intervention``.
        also: Options shown in any case, as ``env.epochs``.
    """
    changed = {**getattr(result.changed, part)}
    for option in also:
        of, _, name = option.partition(".")
        if of == part and name in (options := getattr(result.options, part)):
            changed[name] = options[name]
    if part == "intervention":
        if result.every:
            changed["every"] = result.every
        changed.update(result.schedule)
    words = [getattr(result, part), *(f"{key.replace('__', '.')}={_shown(value)}" for key, value in changed.items())]
    return printable(" ".join(words))  # in one line, whatever it holds


def origin(found: Sequence[Result]) -> str:
    """Where results come from: code, versions, hardware, threads, precision; several of each if they differ."""
    made = [run.origin for run in found]
    facts = {
        "commit": [one.commit or "unknown" for one in made],
        "torch": [one.versions["torch"] for one in made],
        "": [f"{one.hardware.processor}, {one.hardware.cores or '?'} cores" for one in made],
        "on": [one.hardware.device for one in made],
        "threads each:": [str(one.threads) for one in made],
        "precision": [one.precision for one in made],
    }
    told = [f"{name} {_several(values)}".strip() for name, values in facts.items()]
    return printable(f"{len(made)} runs: {'; '.join(told)}")


def _several(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return " and ".join(different[:_NAMED]) + more


# What must be the same -------------------------------------------------------------------------------------------


def _terms(result: Result) -> str:
    return json.dumps([result.options.env, result.options.agent, result.env_version, result.is_rl], sort_keys=True)


def _with_data(variants: list[list[Result]]) -> list[list[Result]]:
    """Split each by its data digest if there are several; old results do not have one."""
    split = []
    for runs in variants:
        stated = {run.data_digest for run in runs if run.data_digest}
        if len(stated) < 2:
            split.append(runs)
            continue
        by_data: dict[str | None, list[Result]] = defaultdict(list)
        for run in runs:
            by_data[run.data_digest].append(run)
        split += by_data.values()
    return split


def _differences(samples: Sequence[Result]) -> list[str]:
    """In what the contests with the same names differ: options, version of the scenario, data."""
    if len(samples) < 2:
        return []
    facts: list[dict[str, Any]] = []
    for sample in samples:
        parts = {"env": sample.options.env, "agent": sample.options.agent}
        options = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
        facts.append({**options, "version": sample.env_version, "data": sample.data_digest})
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
        updates = {run.cost.updates for run in group} - {usual}
        apart = f"{max(updates):,} updates, the others {usual:,}" if updates else ""
        found.append(Entry(name, {run.seed: run for run in group}, apart))
    return found


def _usual_updates(runs: Sequence[Result]) -> int:
    """The budget: updates of the base, or of most runs."""
    base = [run for run in runs if label(run) == BASE] or runs
    return Counter(run.cost.updates for run in base).most_common(1)[0][0]


def _run_options(result: Result, alike: Sequence[Result]) -> str:
    """What tells entries apart that have the same label: options of the run, or at last the group's own digest."""
    options = [other.run for other in alike]
    keys = [key for key in dict.fromkeys(k for o in options for k in o) if key not in ("seed", "every", "metrics")]
    differing = [key for key in keys if any(o.get(key) != options[0].get(key) for o in options)]
    kept = {key: result.run.get(key, "default") for key in differing}
    shown = " ".join(f"{key}={_shown(value)}" for key, value in kept.items())
    return f"{shown or 'run'} ({result.group.rpartition('_')[2]})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
