"""A row per entry over all contests: rank, interquartile mean, gain over doing nothing."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import BASE, Entry, Setting
from plastibench.results.accuracy import mean
from plastibench.results.confidence import (
    Interval,
    iqm_interval,
    paired_improvement,
    ranks,
    stratified_gain,
    stratified_ranks,
)

_MEASURING = "evaluate_every"  # an option of envs that leaves the training as it is
_MANY = 3  # names of scenarios that a note tells

Scores = Mapping[int, float]  # by seed


def overall(made: Sequence[Setting]) -> tuple[list[Row], list[str]]:
    """Over all contests: rank, interquartile mean over their runs, and how often ``none`` is beaten.

    An entry is ranked if it stands in every contest with two seeds or more. What counts are accuracies as shares and
    normalised returns; a contest without these, or of one entry alone, is left out. Scenarios weigh the same, and
    intervals are of these scenarios, not of others: only seeds are random.

    Keys: ``rank``, ``tied``, ``intervention``, ``contests``, ``of``, ``runs``, ``iqm``, ``gain``, ``better``,
    ``mean_rank`` (of the contests in which it has several seeds).

    Returns:
        The rows, those that are ranked first, and what a reader must know of who is not in them or not ranked.
    """
    fields, told = _apart([contest for contest in made if sum(bool(_scores(e, contest)) for e in contest.entries) > 1])
    if len(fields) < 2:
        return [], []
    scores: dict[str, list[Scores]] = {}  # by name, then by contest
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # by name, then why: where
    positions: dict[str, list[int]] = defaultdict(list)
    for number, contest in enumerate(fields):
        entries = {BASE if entry is contest.base else entry.name: entry for entry in contest.entries}
        found = {name: _scores(entry, contest) for name, entry in entries.items() if not entry.apart}
        found = {name: values for name, values in found.items() if values}
        for name, values in found.items():
            scores.setdefault(name, [{} for _ in fields])[number] = values
        for name, entry in entries.items():
            if entry.apart:
                reasons[name]["not comparable in"].append(contest.title)
        several = [name for name, values in found.items() if len(values) > 1]
        for name, position in zip(several, ranks([found[name] for name in several]), strict=True):
            positions[name].append(position)
    for name, by_contest in scores.items():
        for contest, values in zip(fields, by_contest, strict=True):
            if len(values) == 1:
                reasons[name]["one seed in"].append(contest.title)
            elif not values and contest.title not in reasons[name]["not comparable in"]:
                reasons[name]["not run in"].append(contest.title)
    complete = [name for name, by_contest in scores.items() if all(len(values) > 1 for values in by_contest)]
    places = dict(zip(complete, stratified_ranks([scores[name] for name in complete]), strict=True))
    shared = Counter(places.values())
    rows: list[Row] = []
    for name, by_contest in scores.items():
        rank = places.get(name)
        rows.append(
            {
                "rank": rank,
                "tied": rank is not None and shared[rank] > 1,
                "intervention": name,
                "contests": sum(map(bool, by_contest)),
                "of": len(fields),
                "runs": sum(map(len, by_contest)),
                "iqm": iqm_interval([list(values.values()) for values in by_contest if values]),
                **_against(by_contest, scores.get(BASE), is_base=name == BASE),
                "mean_rank": mean(positions[name]),
            }
        )
    rows.sort(key=lambda row: (-row["contests"], row["rank"] or len(rows) + 1, -row["iqm"].value))
    return rows, [*told, *_unranked(rows, reasons)]


def _apart(fields: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Of contests that differ in nothing but how often is evaluated the largest: the others hold the same runs."""
    alike: dict[str, list[Setting]] = defaultdict(list)
    for contest in fields:
        run = next(iter(contest.entries[0].runs.values()))
        options = {key: value for key, value in run.options.env.items() if key != _MEASURING}
        facts = [run.env, options, run.agent, run.options.agent, run.env_version]
        alike[json.dumps(facts, sort_keys=True)].append(contest)
    kept, told = [], []
    for group in (same for contests in alike.values() for same in _with_the_same_data(contests)):
        largest = max(group, key=lambda contest: sum(len(entry.runs) for entry in contest.entries))
        kept.append(largest)
        told += [
            f"{contest.title} is not counted: it differs from {largest.title} in how often is evaluated alone"
            for contest in group
            if contest is not largest
        ]
    return kept, told


def _with_the_same_data(contests: Sequence[Setting]) -> list[list[Setting]]:
    """Split by data digest; results without a digest may have any data."""
    by_data: dict[str | None, list[Setting]] = defaultdict(list)
    for contest in contests:
        stated = (run.data_digest for entry in contest.entries for run in entry.runs.values())
        by_data[next(filter(None, stated), None)].append(contest)
    return list(by_data.values()) if len(by_data.keys() - {None}) > 1 else [list(contests)]


def _unranked(rows: Sequence[Row], reasons: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Who is not ranked, and why; those for the same reason together."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["rank"] is None:
            why = [f"{reason} {_titles(where)}" for reason, where in reasons[row["intervention"]].items() if where]
            found["; ".join(why)].append(row["intervention"])
    return [f"not ranked, {why}: {', '.join(names)}" for why, names in found.items()]


def _titles(where: Sequence[str]) -> str:
    more = f" and {len(where) - _MANY} more" if len(where) > _MANY else ""
    return f"{' and '.join(where[:_MANY])}{more}"


def _scores(entry: Entry, contest: Setting) -> Scores:
    return entry.scores("normalised_return" if contest.is_rl else "final_accuracy")


def _against(scores: Sequence[Scores], base: Sequence[Scores] | None, is_base: bool) -> dict[str, Interval | None]:
    """Gain and share of wins over the base; nothing to say of the base itself."""
    if is_base or base is None:
        return {"gain": None, "better": None}
    ours, theirs = (
        {(number, seed): value for number, values in enumerate(each) for seed, value in values.items()}
        for each in (scores, base)
    )
    return {"gain": stratified_gain(scores, base), "better": paired_improvement(ours, theirs)}
