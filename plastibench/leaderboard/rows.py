"""A row per entry: figures with their intervals, rank, gain over doing nothing, extra time and memory."""

from __future__ import annotations

import statistics as plain
from collections import Counter
from collections.abc import Mapping
from typing import Any

from plastibench.leaderboard.settings import Entry, Setting
from plastibench.results.accuracy import mean
from plastibench.results.confidence import iqm_interval, mean_interval, paired_gain, paired_improvement, ranks
from plastibench.results.result import Result

Row = dict[str, Any]


def rows(contest: Setting) -> list[Row]:
    """The rows of a contest, the best mean first; what cannot be ranked has no rank, and says why.

    Keys: ``env``, ``agent``, ``rank`` (None where there is none), ``tied``, ``intervention``, ``seeds``, ``final``,
    ``iqm``, ``gain``, ``better`` (share of shared seeds in which it beats ``none``), ``average``, ``auc``, ``drop``,
    ``lowest`` and ``q_bias`` (of agents that act), ``recovery`` (epochs or steps), ``unrecovered``, ``time`` and
    ``memory`` (of the run, over ``none``'s), ``cost`` (share of the run's time that the intervention took), ``apart``.
    Figures with an interval are :class:`~plastibench.results.confidence.Interval`; accuracies are shares.
    """
    base = contest.base
    scores = {entry.name: entry.scores(contest.score) for entry in contest.entries}
    ranked = [entry.name for entry in contest.entries if len(scores[entry.name]) > 1 and not entry.apart]
    places = dict(zip(ranked, ranks([scores[name] for name in ranked]), strict=True))
    shared = Counter(places.values())
    made = []
    for entry in contest.entries:
        if not scores[entry.name]:
            continue
        rank = places.get(entry.name)
        row = {
            "env": contest.env,
            "agent": contest.agent,
            "rank": rank,
            "tied": rank is not None and shared[rank] > 1,
            "intervention": entry.name,
            "seeds": sorted(entry.runs),
            **_performance(entry, contest),
            **_against(scores[entry.name], scores[base.name] if base else {}, is_base=entry is base),
            **_cost(entry, base),
            "apart": entry.apart,
        }
        made.append(row)
    return sorted(made, key=lambda row: -row["final"].value)


def _performance(entry: Entry, contest: Setting) -> Row:
    final = list(entry.scores(contest.score).values())
    drops = list(entry.scores("mean_drop").values())
    kind = "return" if contest.is_rl else "accuracy"
    return {
        "final": mean_interval(final),
        "iqm": iqm_interval([final]),
        "average": _mean(entry, f"average_{kind}"),
        "auc": _mean(entry, "auc"),
        "drop": mean_interval(drops) if drops else None,
        "lowest": _mean(entry, "mean_lowest"),
        "q_bias": _mean(entry, "final_q_bias"),
        "recovery": _mean(entry, "mean_recovery_steps" if contest.is_rl else "mean_recovery_epochs"),
        "unrecovered": _mean(entry, "unrecovered_fraction"),
    }


def _against(scores: Mapping[Any, float], base: Mapping[Any, float], is_base: bool) -> Row:
    """Gain and share of wins over the base; nothing to say of the base itself."""
    found: Row = {"gain": None, "better": None}
    if not is_base:
        found = {"gain": paired_gain(scores, base), "better": paired_improvement(scores, base)}
    return found


def _cost(entry: Entry, base: Entry | None) -> Row:
    runs = entry.runs.values()
    fraction = mean([run.cost.intervention_fraction for run in runs])
    found: Row = {"time": None, "memory": None, "cost": fraction, "seconds": mean([run.cost.seconds for run in runs])}
    if base is not None:
        pairs = [(run, base.runs[seed]) for seed, run in entry.runs.items() if seed in base.runs]
        times = [_seconds(run) / _seconds(other) for run, other in pairs if _machine(run) == _machine(other)]
        kept = [(_bytes(run), _bytes(other)) for run, other in pairs]
        sizes = [ours / theirs for ours, theirs in kept if ours and theirs]
        found["time"] = plain.median(times) if times else None
        found["memory"] = plain.median(sizes) if sizes else None
    return found


def _seconds(run: Result) -> float:
    """What the run took, without the plasticity metrics: those are measured whatever the intervention."""
    return max(run.cost.seconds - run.cost.metric_seconds, 1e-9)


def _bytes(run: Result) -> int:
    """Parameters and what the intervention keeps; 0 where the result does not say."""
    return (run.cost.network_bytes or 0) + (run.cost.intervention_bytes or 0)


def _machine(run: Result) -> tuple[Any, ...]:
    return run.origin.hardware.processor, run.origin.hardware.device, run.origin.threads


def _mean(entry: Entry, name: str) -> float | None:
    return mean(list(entry.scores(name).values()))
