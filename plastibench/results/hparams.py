"""Columns of TensorBoard's HParams tab, which has a row per run: hyperparameters and metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.identity import digest_of
from plastibench.config.options import as_dict, options_of
from plastibench.config.spec import PARTS, RunSpec
from plastibench.results.files import schedule
from plastibench.results.result import Cost, Result, Summary

GROUP = "leaderboard"  # prefix of the scalars
_TOGETHER = {"env": "env options", "agent": "agent options", "intervention": "options"}
MOST_COLUMNS = 4  # with more hyperparameters, the final accuracy is not visible in a 1400-pixel window
_DIGEST = 8  # characters of the digest at the end of a trial's name
_NAME_LENGTH = 13  # characters of a trial's name before the seed that its column shows


@dataclass(frozen=True)
class Metric:
    """A metric column.

    Attributes:
        name: Name of its scalar, and heading.
        meaning: Explanation.
        supervised: Whether supervised runs have it.
        rl: Whether RL runs have it.
    """

    name: str
    meaning: str
    supervised: bool = True
    rl: bool = True


METRICS = (
    Metric("final %", "accuracy after the last task", rl=False),
    Metric("final return", "mean return of the last evaluations of the last task, at most three", supervised=False),
    Metric("drop %", "mean accuracy lost right at an intervention, in percentage points", rl=False),
    Metric("return drop", "mean return lost right at an intervention", supervised=False),
    Metric("recovered in", "mean number of epochs or steps until the previous value is reached again"),
    Metric("never %", "percentage of interventions after which the previous value is never reached again"),
    Metric("AUC %", "mean over tasks of the area under the accuracy curve", rl=False),
    Metric("average return", "mean return over all evaluations", supervised=False),
    Metric("cost %", "percentage of the CPU time spent in interventions"),
    Metric("seconds", "run time in seconds"),
    Metric("updates", "number of updates"),
)


def metric_values(summary: Summary, cost: Cost) -> dict[str, float]:
    """The metric values that a run has, by name."""
    is_rl = summary.final_return is not None

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    recovery = summary.mean_recovery_steps if is_rl else summary.mean_recovery_epochs
    values = {
        "final %": percent(summary.final_accuracy),
        "final return": summary.final_return,
        "drop %": None if is_rl else percent(summary.mean_drop),
        "return drop": summary.mean_drop if is_rl else None,
        "recovered in": recovery,
        "never %": percent(summary.unrecovered_fraction),
        "AUC %": percent(summary.auc),
        "average return": summary.average_return,
        "cost %": percent(cost.intervention_fraction),
        "seconds": cost.seconds,
        "updates": float(cost.updates),
    }
    return {name: value for name, value in values.items() if value is not None}


def hyperparameters(run: RunSpec | Result) -> dict[str, str]:
    """Hyperparameters of a run, as text.

    They are the names of env, agent and intervention, the seed, and each option that differs from its default (such as
    ``quantile``, ``every`` and ``env.tasks``). Four more columns combine these options: ``options``, ``env options``,
    ``agent options`` and ``all options``.
    """
    names, changed, seed = _facts(run)
    single = {
        _column(part, key): _pair(key, value).partition("=")[2]
        for part, values in changed.items()
        for key, value in values.items()
    }
    texts = {part: ", ".join(_pair(key, value) for key, value in values.items()) for part, values in changed.items()}
    together = ", ".join(filter(None, (texts[part] for part in reversed(PARTS))))
    combined = {_TOGETHER[part]: text for part, text in texts.items()}
    return {**single, **names, **combined, "all options": together, "seed": str(seed)}


def differing_columns(runs: Sequence[Result]) -> list[str]:
    """Return the hyperparameters in which runs differ, at most four; intervention and seed if they differ in none.

    With both supervised and RL runs, at most three are shown, because two columns contain final values. The agent is
    left out if the env determines it. Options count as different only if they differ between runs with the same name.
    If there are too many columns, the seed is left out, because it is part of a trial's name. If there are still too
    many, the options of each part are combined into one column, and finally the options of all parts.
    """
    found = [hyperparameters(run) for run in runs]
    names = [part for part in PARTS if len({values[part] for values in found}) > 1]
    if "env" in names and len({values["env"] for values in found}) == len({(v["env"], v["agent"]) for v in found}):
        names = [part for part in names if part != "agent"]
    most = MOST_COLUMNS - (len({run.is_rl for run in runs}) > 1)
    seed = ["seed"] if len({values["seed"] for values in found}) > 1 else []
    options = {part: _differing_options(runs, part) for part in PARTS}
    single = [_column(part, key) for part in PARTS for key in options[part]]
    grouped = [_TOGETHER[part] if len(keys) > 1 else _column(part, keys[0]) for part, keys in options.items() if keys]
    for columns in ([*names, *single, *seed], [*names, *single], [*names, *grouped], [*names, "all options"]):
        if len(columns) <= most:
            break
    return columns or ["intervention", "seed"]


def _differing_options(runs: Sequence[Result], part: str) -> list[str]:
    """Return the options of a part that differ between runs with the same name of this part."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        names, changed, _ = _facts(run)
        by_name[names[part]].append(changed[part])
    found: dict[str, None] = {}
    for values in by_name.values():
        keys = dict.fromkeys(key for each in values for key in each)
        found.update((key, None) for key in keys if any(each.get(key) != values[0].get(key) for each in values))
    return list(found)


def _facts(run: RunSpec | Result) -> tuple[dict[str, str], dict[str, dict[str, Any]], int]:
    """Names and changed options by part, and the seed; ``every`` and the schedule are options of the intervention."""
    if isinstance(run, Result):
        names = {part: str(getattr(run, part)) for part in PARTS}
        changed = {part: dict(getattr(run.changed, part)) for part in PARTS}
        seed, every, others = run.seed, run.every, dict(run.schedule)
    else:
        names = {part: getattr(run, part)[0] for part in PARTS}
        changed = {part: run.changed(part) for part in PARTS}
        seed, every, others = run.run.seed, run.run.every, schedule(as_dict(run.run))
    changed["intervention"] |= {**({"every": every} if every else {}), **others}
    return names, changed, seed


def _column(part: str, option: str) -> str:
    name = option.replace("__", ".")
    return name if part == "intervention" else f"{part}.{name}"


def trial_name(spec: RunSpec) -> str:
    """Return a short unique name that contains the intervention's non-default options.

    For example ``rnr·q=0.2·s0·3e1522a7``: the intervention, its options (abbreviated to their shortest unique prefix),
    the seed, and the beginning of the digest in the run's id. TensorBoard's column shows about the first 16 characters,
    so long intervention names are shortened.
    """
    name = spec.intervention[0]
    try:
        known = list(options_of(registry.interventions[name].load()))
    except UserError:
        known = []
    changed = spec.changed("intervention")
    words = [_pair(_abbreviated(key, known), value) for key, value in changed.items()]
    words += [f"every={spec.run.every}"] if spec.run.every else []
    words += [_pair(key, value) for key, value in schedule(as_dict(spec.run)).items()]
    room = max(4, _NAME_LENGTH - sum(len(word) + 1 for word in words))
    if len(name) > room:
        name = f"{name[: room - 1]}…"
    return "·".join([name, *words, f"s{spec.run.seed}", digest_of(spec.id)[:_DIGEST]])


def _abbreviated(option: str, known: Sequence[str]) -> str:
    for length in range(1, len(option)):
        if not any(other != option and other.startswith(option[:length]) for other in known):
            return option[:length].replace("__", ".")
    return option.replace("__", ".")


def _pair(key: str, value: Any) -> str:
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"{key.replace('__', '.')}={shown}"
