"""Rows over all settings: one per method, with rank, interquartile mean and gain over ``none``."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import BASE, Method, Setting
from plastibench.results.accuracy import mean
from plastibench.results.confidence import (
    Interval,
    iqm_interval,
    paired_improvement,
    ranks,
    stratified_gain,
    stratified_ranks,
)
from plastibench.utils.wording import plural

_EVALUATION_OPTION = "evaluate_every"  # option of envs that does not change the training
_MANY = 3  # number of settings that a note lists
_FEWEST = 3  # minimum number of methods in a setting that counts, if any setting has that many

Scores = Mapping[int, float]  # by seed
Reasons = dict[str, list[str]]  # reason to titles of settings


def overall(
    settings: Sequence[Setting], *, all_settings: bool = False, exclude_tags: Collection[str] = ()
) -> tuple[list[Row], list[str]]:
    """Compare methods over all settings.

    Scores are accuracies as fractions, and normalized returns. Settings without these or with a single method are left
    out. By default, a setting counts only if it has at least three methods (if any setting has three) and at least half
    as many as the median setting. A method with one seed is not counted, unless all methods have one seed. Without
    these rules, a trial run of two methods would remove all others from the ranking. A method is ranked if it has at
    least two seeds in every setting. All settings have equal weight. Intervals treat only the seeds as random, so they
    say nothing about other settings.

    Keys: ``rank``, ``tied``, ``intervention``, ``settings`` (number in which it counts), ``of`` (number of all),
    ``runs``, ``iqm``, ``gain``, ``better``, ``mean_rank`` (over the settings in which it has several seeds).

    Args:
        settings: All settings.
        all_settings: Count settings with few methods, too.
        exclude_tags: Leave out runs with one of these tags.

    Returns:
        The rows, ranked methods first, and notes on settings that are not counted and methods that are not ranked.
    """
    settings, excluded = _without_tags(settings, exclude_tags)
    several_methods = [setting for setting in settings if _method_count(setting, 1) > 1]
    counted, notes = _without_duplicates(several_methods)
    small: list[str] = []
    if not all_settings:
        counted, small = _without_small(counted)
    if len(counted) < 2:
        return [], small
    notes = [*excluded, *notes, *small]
    scores, mean_ranks, reasons = _collect(counted)
    complete = [name for name, by_setting in scores.items() if all(len(values) > 1 for values in by_setting)]
    rank_of = dict(zip(complete, stratified_ranks([scores[name] for name in complete]), strict=True))
    shared = Counter(rank_of.values())
    rows: list[Row] = []
    for name, by_setting in scores.items():
        rank = rank_of.get(name)
        rows.append(
            {
                "rank": rank,
                "tied": rank is not None and shared[rank] > 1,
                "intervention": name,
                "settings": sum(map(bool, by_setting)),
                "of": len(counted),
                "runs": sum(map(len, by_setting)),
                "iqm": iqm_interval([list(values.values()) for values in by_setting if values]),
                **_against(by_setting, scores.get(BASE), is_base=name == BASE),
                "mean_rank": mean_ranks[name],
            }
        )
    rows.sort(key=lambda row: (-row["settings"], row["rank"] or len(rows) + 1, -row["iqm"].value))
    return rows, [*notes, *_unranked(rows, reasons, len(counted))]


def _without_tags(settings: Sequence[Setting], tags: Collection[str]) -> tuple[list[Setting], list[str]]:
    """Leave out runs with one of these tags."""
    kept, count = [], 0
    for setting in settings:
        methods = []
        for method in setting.methods:
            runs = {seed: run for seed, run in method.runs.items() if not run.tags.intersection(tags)}
            count += len(method.runs) - len(runs)
            if runs:
                methods.append(dataclasses.replace(method, runs=runs))
        kept.append(dataclasses.replace(setting, methods=methods))
    names = " or ".join(sorted(tags))
    return kept, [f"not counted: {plural(count, 'run')} with the tag {names}"] if count else []


def _method_count(setting: Setting, seeds: int) -> int:
    """Number of methods with at least this many seeds."""
    return sum(len(_scores(method, setting)) >= seeds for method in setting.methods)


def _without_small(settings: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Leave out settings with too few methods."""
    seeds = 2 if any(_method_count(setting, 2) > 1 for setting in settings) else 1
    counts = [_method_count(setting, seeds) for setting in settings]
    needed = min(max(counts, default=0), max(_FEWEST, math.ceil(statistics.median(counts or [0]) / 2)))
    kept = [setting for setting, count in zip(settings, counts, strict=True) if count >= needed]
    small = [f"{setting.title} ({n})" for setting, n in zip(settings, counts, strict=True) if n < needed]
    if not small:
        return kept, []
    several = " with several seeds" if seeds > 1 else ""
    few = f"fewer than {plural(needed, 'method')}{several}"
    return kept, [f"not counted, {few} (--all-settings counts it): {_titles(small)}"]


def _without_duplicates(settings: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Keep the largest of settings that differ only in how often they evaluate: they contain the same runs."""
    alike: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings:
        run = setting.runs[0]
        options = {key: value for key, value in run.options.env.items() if key != _EVALUATION_OPTION}
        key = [run.env, options, run.agent, run.options.agent, run.env_version, run.agent_version]
        alike[json.dumps(key, sort_keys=True)].append(setting)
    counted, notes = [], []
    for group in (same for candidates in alike.values() for same in _by_data(candidates)):
        largest = max(group, key=lambda setting: len(setting.runs))
        counted.append(largest)
        notes += [
            f"not counted: {setting.title}, which differs from {largest.title} only in {_difference(setting, largest)}"
            for setting in group
            if setting is not largest
        ]
    return counted, notes


def _difference(setting: Setting, other: Setting) -> str:
    """What two settings that may contain the same runs differ in."""
    every = [each.runs[0].options.env.get(_EVALUATION_OPTION) for each in (setting, other)]
    found = ["how often it is evaluated"] if every[0] != every[1] else []
    if _digest(setting) != _digest(other):
        found.append("whether its data is recorded")
    return " and ".join(found)


def _digest(setting: Setting) -> str | None:
    return next((run.data_digest for run in setting.runs if run.data_digest), None)


def _by_data(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Split by data digest; results without a digest may have any data."""
    by_data: dict[str | None, list[Setting]] = defaultdict(list)
    for setting in settings:
        by_data[_digest(setting)].append(setting)
    return list(by_data.values()) if len(by_data.keys() - {None}) > 1 else [list(settings)]


def _collect(
    settings: Sequence[Setting],
) -> tuple[dict[str, list[Scores]], dict[str, float | None], Mapping[str, Reasons]]:
    """By name of a method: its scores in each setting, its mean rank, and why it cannot be ranked over all settings."""
    scores: dict[str, list[Scores]] = {}
    positions: dict[str, list[int]] = defaultdict(list)
    reasons: dict[str, Reasons] = defaultdict(lambda: defaultdict(list))
    for number, setting in enumerate(settings):
        methods = {BASE if method is setting.base else method.name: method for method in setting.methods}
        found = {name: _scores(method, setting) for name, method in methods.items() if not method.not_comparable}
        found = {name: values for name, values in found.items() if values}
        for name, values in found.items():
            scores.setdefault(name, [{} for _ in settings])[number] = values
        for name, method in methods.items():
            if method.not_comparable:
                reasons[name]["not comparable in"].append(setting.title)
        several = [name for name, values in found.items() if len(values) > 1]
        for name, position in zip(several, ranks([found[name] for name in several]), strict=True):
            positions[name].append(position)
    for name, by_setting in scores.items():
        for setting, values in zip(settings, by_setting, strict=True):
            if len(values) == 1:
                reasons[name]["one seed in"].append(setting.title)
            elif not values and setting.title not in reasons[name]["not comparable in"]:
                reasons[name]["not run in"].append(setting.title)
    return scores, {name: mean(positions[name]) for name in scores}, reasons


def _unranked(rows: Sequence[Row], reasons: Mapping[str, Reasons], count: int) -> list[str]:
    """Notes on methods that are not ranked, grouped by reason. ``count`` is the number of settings."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["rank"] is None:
            parts = [
                f"{reason} {where[0]}" if len(where) == 1 else f"{reason} {len(where)} of {plural(count, 'setting')}"
                for reason, where in reasons[row["intervention"]].items()
                if where
            ]
            found["; ".join(parts)].append(row["intervention"])
    return [f"not ranked, {reason}: {', '.join(names)}" for reason, names in found.items()]


def _titles(where: Sequence[str]) -> str:
    more = f" and {len(where) - _MANY} more" if len(where) > _MANY else ""
    return f"{' and '.join(where[:_MANY])}{more}"


def _scores(method: Method, setting: Setting) -> Scores:
    return method.scores("normalized_return" if setting.is_rl else "final_accuracy")


def _against(scores: Sequence[Scores], base: Sequence[Scores] | None, is_base: bool) -> dict[str, Interval | None]:
    """Gain over the base and fraction of seeds that beat it; None for the base itself."""
    if is_base or base is None:
        return {"gain": None, "better": None}
    ours, theirs = (
        {(number, seed): value for number, values in enumerate(each) for seed, value in values.items()}
        for each in (scores, base)
    )
    return {"gain": stratified_gain(scores, base), "better": paired_improvement(ours, theirs)}
