"""Group runs into settings and methods.

Runs of one setting share task stream, data, budget and agent. Runs of one method differ in the seed only.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plastibench.config.code_digest import short_code
from plastibench.results.result import Result
from plastibench.utils.tables import printable
from plastibench.utils.wording import plural

BASE = "none"
_NAMED = 4  # number of different commits, processors, ... that are listed


@dataclass(frozen=True)
class Method:
    """Runs that differ in the seed only.

    Attributes:
        name: The intervention with its options; unique within the setting.
        runs: Results by seed.
        not_comparable: Why it cannot be ranked among the others; empty if it can.
    """

    name: str
    runs: Mapping[int, Result]
    not_comparable: str = ""

    def scores(self, name: str) -> dict[int, float]:
        """A value of the summary by seed, without the seeds that lack it."""
        values = {seed: getattr(run.summary, name) for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Setting:
    """Methods that may be compared.

    Attributes:
        env: Name of the task stream or environment, with the options that identify the setting.
        agent: Likewise.
        is_rl: Whether an RL agent was trained, so that returns are compared instead of accuracies.
        methods: In order of first appearance.
        differs: Why runs with the same env and agent are in another setting; empty if there are none.
    """

    env: str
    agent: str
    is_rl: bool
    methods: list[Method] = field(repr=False)
    differs: str = ""

    @property
    def title(self) -> str:
        """Env and agent."""
        return f"{self.env}, {self.agent}"

    @property
    def score(self) -> str:
        """Name of the summary value by which methods are ranked."""
        return "final_return" if self.is_rl else "final_accuracy"

    @property
    def base(self) -> Method | None:
        """The method ``none``; if it was run with several options, the one with most seeds."""
        found = [method for method in self.methods if label(next(iter(method.runs.values()))) == BASE]
        return max(found, key=lambda method: len(method.runs), default=None)

    @property
    def runs(self) -> list[Result]:
        """All runs of all methods."""
        return [run for method in self.methods for run in method.runs.values()]


def by_setting(found: Iterable[Result]) -> list[Setting]:
    """Group results into settings, sorted by the names of env and agent."""
    named: dict[tuple[str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in found:
        named[result.env, result.agent][_key(result)].append(result)
    made = []
    for _, by_key in sorted(named.items()):
        variants = _split_by_data(list(by_key.values()))
        differing = _differences([runs[0] for runs in variants])
        for runs in variants:
            env, agent = (label(runs[0], part, differing) for part in ("env", "agent"))
            facts = setting_facts(runs[0])
            extra = [f"{key}={value or 'unknown'}" for key, value in facts.items() if key in differing]
            differs = ""
            if differing:
                differs = f"not comparable with other runs of {runs[0].env} and {runs[0].agent}, which differ in "
                differs += ", ".join(differing)
            made.append(Setting(" ".join([env, *extra]), agent, runs[0].is_rl, _methods(runs), differs))
    return made


def by_group(found: Iterable[Result]) -> list[list[Result]]:
    """Group results that differ in the seed only, in order of first appearance; each group is sorted by seed."""
    groups: dict[str, list[Result]] = {}
    for result in found:
        groups.setdefault(result.group, []).append(result)
    return [sorted(runs, key=lambda run: run.seed) for runs in groups.values()]


def label(result: Result, part: str = "intervention", also: Iterable[str] = ()) -> str:
    """The name of an env, agent or intervention, with the options that differ from the defaults of this name.

    Args:
        result: A result.
        part: ``env``, ``agent`` or ``intervention``.
        also: Options to show in any case, such as ``env.epochs``.
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
    words = [getattr(result, part), *(f"{key.replace('__', '.')}={shown(value)}" for key, value in changed.items())]
    return printable(" ".join(words))  # always one line


def warnings(runs: Iterable[Result]) -> list[str]:
    """Warnings of runs that differ only in the seed; a warning that applies to some seeds names them."""
    seeds: dict[str, list[int]] = {}
    runs = list(runs)
    for run in runs:
        for warning in run.warnings:
            seeds.setdefault(warning, []).append(run.seed)
    some = {text: f" (seed {', '.join(map(str, of))})" if len(of) < len(runs) else "" for text, of in seeds.items()}
    return [f"{text}{which}" for text, which in some.items()]


def origin(found: Sequence[Result]) -> str:
    """Describe where results come from: code, versions, hardware, threads and precision."""
    origins = [run.origin for run in found]
    facts = {
        "commit": [one.commit or "unknown" for one in origins],
        "torch": [one.versions["torch"] for one in origins],
        "": [
            f"{one.hardware.processor}, {plural(one.hardware.cores, 'core') if one.hardware.cores else '? cores'}"
            for one in origins
        ],
        "on": [one.hardware.device for one in origins],
        "threads each:": [str(one.threads) for one in origins],
        "precision": [one.precision for one in origins],
    }
    parts = [f"{name} {_several(values)}".strip() for name, values in facts.items()]
    return printable(f"{plural(len(origins), 'run')}: {'; '.join(parts)}")


def _several(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return " and ".join(different[:_NAMED]) + more


# Settings -------------------------------------------------------------------------------------------


def _key(result: Result) -> str:
    """What runs of one setting have in common, besides the data."""
    facts = {**setting_facts(result), "data": None}
    return json.dumps([result.options.env, result.options.agent, facts, result.is_rl], sort_keys=True)


def setting_facts(result: Result) -> dict[str, Any]:
    """Return data digest, versions and plugin code of env and agent; old files do not record the data digest."""
    code = {f"{part} code": result.code.get(part) for part in ("env", "agent")}
    code = {key: None if value and value.startswith("version ") else value for key, value in code.items()}
    return {
        "version": result.env_version,
        "agent version": result.agent_version,
        "data": result.data_digest,
        **code,
    }


def _split_by_data(variants: list[list[Result]]) -> list[list[Result]]:
    """Split groups that contain several data digests; old results have no digest."""
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
    """Return the options, versions, code and data that differ between settings with the same names."""
    if len(samples) < 2:
        return []
    facts: list[dict[str, Any]] = []
    for sample in samples:
        parts = {"env": sample.options.env, "agent": sample.options.agent}
        options = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
        facts.append({**options, **setting_facts(sample)})
    keys = dict.fromkeys(key for fact in facts for key in fact)
    missing = object()
    return [key for key in keys if any(fact.get(key, missing) != facts[0].get(key, missing) for fact in facts)]


# Methods ---------------------------------------------------------------------------------------------------------


def _methods(runs: Sequence[Result]) -> list[Method]:
    groups = by_group(runs)
    names = [label(group[0]) for group in groups]
    expected = _expected_updates(runs)
    found = []
    for name, group in zip(names, groups, strict=True):
        if names.count(name) > 1:
            alike = [other[0] for other, named in zip(groups, names, strict=True) if named == name]
            name = f"{name} {_distinguishing_options(group[0], alike)}"
        updates = {run.cost.updates for run in group} - {expected}
        reason = f"{plural(max(updates), 'update')} instead of {expected:,}" if updates else ""
        found.append(Method(name, {run.seed: run for run in group}, reason))
    return found


def _expected_updates(runs: Sequence[Result]) -> int:
    """The budget: number of updates of ``none``, or of most runs."""
    base = [run for run in runs if label(run) == BASE] or runs
    return Counter(run.cost.updates for run in base).most_common(1)[0][0]


def _distinguishing_options(result: Result, alike: Sequence[Result]) -> str:
    """Return the run options and code that distinguish methods with the same label; the group's digest if none do."""
    keys = differing_in_run_or_code(alike)
    words = [show_run_and_code(other, keys) for other in alike]
    own = show_run_and_code(result, keys)
    return own if words.count(own) == 1 else f"{own or 'run'} {group_digest(result)}"


def differing_in_run_or_code(alike: Sequence[Result]) -> list[str]:
    """The options of the run, and ``code``, in which methods with the same label differ."""
    known = [_run_and_code(other) for other in alike]
    keys = [key for key in dict.fromkeys(k for o in known for k in o) if key not in ("seed", "every", "metrics")]
    return [key for key in keys if any(o.get(key) != known[0].get(key) for o in known)]


def show_run_and_code(result: Result, keys: Iterable[str]) -> str:
    """Format options of the run, and ``code``, as in ``representative=64 code=92d6b3``."""
    known = _run_and_code(result)
    return printable(" ".join(f"{key}={shown(known.get(key, 'default'))}" for key in keys))


def group_digest(result: Result) -> str:
    """The digest of a result's group, in parentheses."""
    return f"({result.group.rpartition('_')[2]})"


def _run_and_code(result: Result) -> dict[str, Any]:
    """The options of the run, and the code of the intervention."""
    code = short_code(result.code.get("intervention", ""))
    return {**result.run, **({"code": code} if code else {})}


def shown(value: Any) -> str:
    """Format the value of an option; list items are separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
