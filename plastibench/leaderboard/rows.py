"""The rows of a setting: one per method, with values and their intervals, rank, gain over ``none``, time and memory."""

from __future__ import annotations

import statistics as plain
from collections import Counter
from collections.abc import Mapping
from typing import Any

from plastibench.leaderboard.settings import Method, Setting
from plastibench.results.accuracy import mean
from plastibench.results.confidence import iqm_interval, mean_interval, paired_gain, paired_improvement, ranks
from plastibench.results.result import Result

Row = dict[str, Any]
_SHORTEST = 10.0  # seconds of CPU time; start-up dominates shorter runs


def rows(setting: Setting) -> list[Row]:
    """Make the rows of a setting, best mean first.

    Keys:

    - ``env``, ``agent``, ``intervention``, ``seeds``,
    - ``rank`` (None if the method cannot be ranked), ``tied``, ``not_comparable`` (the reason, or empty),
    - ``final``, ``iqm``, ``gain`` (over ``none``), ``better`` (fraction of shared seeds in which it beats ``none``),
    - ``average``, ``auc``, ``drop``, ``lowest`` and ``q_bias`` (RL agents only),
    - ``recovery`` (epochs or steps), ``unrecovered`` (fraction of interventions without recovery),
    - ``time`` (CPU time relative to ``none``; None if times of the setting cannot be compared), ``memory`` relative
      to ``none``, ``cost`` (fraction of the run's time that the intervention took), ``seconds``.

    Values with an interval are :class:`~plastibench.results.confidence.Interval`; accuracies are fractions.
    """
    base = setting.base
    timed = _is_timed(setting)
    scores = {method.name: method.scores(setting.score) for method in setting.methods}
    ranked = [method.name for method in setting.methods if len(scores[method.name]) > 1 and not method.not_comparable]
    rank_of = dict(zip(ranked, ranks([scores[name] for name in ranked]), strict=True))
    shared = Counter(rank_of.values())
    made = []
    for method in setting.methods:
        if not scores[method.name]:
            continue
        rank = rank_of.get(method.name)
        row = {
            "env": setting.env,
            "agent": setting.agent,
            "rank": rank,
            "tied": rank is not None and shared[rank] > 1,
            "intervention": method.name,
            "seeds": sorted(method.runs),
            **_performance(method, setting),
            **_against(scores[method.name], scores[base.name] if base else {}, is_base=method is base),
            **_cost(method, base, timed),
            "not_comparable": method.not_comparable,
        }
        made.append(row)
    return sorted(made, key=lambda row: -row["final"].value)


def _performance(method: Method, setting: Setting) -> Row:
    final = list(method.scores(setting.score).values())
    drops = list(method.scores("mean_drop").values())
    kind = "return" if setting.is_rl else "accuracy"
    return {
        "final": mean_interval(final),
        "iqm": iqm_interval([final]),
        "average": _mean(method, f"average_{kind}"),
        "auc": _mean(method, "auc"),
        "drop": mean_interval(drops) if drops else None,
        "lowest": _mean(method, "mean_lowest"),
        "q_bias": _mean(method, "final_q_bias"),
        "recovery": _mean(method, "mean_recovery_steps" if setting.is_rl else "mean_recovery_epochs"),
        "unrecovered": _mean(method, "unrecovered_fraction"),
    }


def _against(scores: Mapping[Any, float], base: Mapping[Any, float], is_base: bool) -> Row:
    """Gain over the base and fraction of seeds that beat it; None for the base itself."""
    found: Row = {"gain": None, "better": None}
    if not is_base:
        found = {"gain": paired_gain(scores, base), "better": paired_improvement(scores, base)}
    return found


def _cost(method: Method, base: Method | None, timed: bool) -> Row:
    runs = method.runs.values()
    fraction = mean([run.cost.intervention_fraction for run in runs])
    found: Row = {"time": None, "memory": None, "cost": fraction, "seconds": mean([run.cost.seconds for run in runs])}
    if base is not None:
        pairs = [(run, base.runs[seed]) for seed, run in method.runs.items() if seed in base.runs]
        times = [_cpu_seconds(run) / _cpu_seconds(other) for run, other in pairs] if timed else []
        kept = [(_bytes(run), _bytes(other)) for run, other in pairs]
        sizes = [ours / theirs for ours, theirs in kept if ours and theirs]
        found["time"] = plain.median(times) if times else None
        found["memory"] = plain.median(sizes) if sizes else None
    return found


def _is_timed(setting: Setting) -> bool:
    """Whether times of the runs can be compared: CPU time of their own, on the same hardware, long enough."""
    hardware = {(run.origin.hardware.processor, run.origin.hardware.device, run.origin.threads) for run in setting.runs}
    return len(hardware) == 1 and all(
        run.origin.hardware.device == "cpu" and run.origin.stacked == 1 and (run.cost.cpu_seconds or 0.0) >= _SHORTEST
        for run in setting.runs
    )


def _cpu_seconds(run: Result) -> float:
    """CPU time of the run without the plasticity metrics, which are measured for every method.

    The time of the metrics is wall-clock time, so their fraction of the run is subtracted.
    """
    return max((run.cost.cpu_seconds or 0.0) * (1 - run.cost.metric_seconds / max(run.cost.seconds, 1e-9)), 1e-9)


def _bytes(run: Result) -> int:
    """Size of parameters and of the state of the intervention; 0 if the result lacks it."""
    return (run.cost.network_bytes or 0) + (run.cost.intervention_bytes or 0)


def _mean(method: Method, name: str) -> float | None:
    return mean(list(method.scores(name).values()))
