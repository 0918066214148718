"""Columns of the leaderboard, most important first, and functions that sort and filter rows by them."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plastibench.config.errors import UserError, did_you_mean
from plastibench.leaderboard.rows import Row
from plastibench.results.confidence import Interval

_BETTER = "fraction of seeds that beat none, ties count half [95 % CI, Wilson]"


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        key: Key of the rows; ``--sort`` and ``--filter`` take it.
        heading: Heading of the column.
        unit: Unit; ``score``: accuracy in percent, or a return; ``fraction``: shown in percent; ``ratio``: relative to
            ``none``.
        better: ``more`` or ``less``: which direction is better.
        meaning: Explanation in one line.
        rl_meaning: Explanation for RL agents; empty: the same.
    """

    key: str
    heading: str
    unit: Literal["text", "rank", "number", "score", "fraction", "ratio", "probability"]
    better: Literal["more", "less"]
    meaning: str
    rl_meaning: str = ""


SIGNIFICANT = "significant: the 95 % confidence interval of the paired difference lies above 0"
COLUMNS = (
    Column("intervention", "intervention", "text", "less", "name, with options that differ from its defaults"),
    Column("rank", "rank", "rank", "less", "1 + number of significantly better methods (= tied; – not ranked)"),
    Column("final", "final", "score", "more", "accuracy after the last task", "mean of the last three returns"),
    Column("gain", "gain", "score", "more", "final value minus the final value of none with the same seed"),
    Column(
        "drop",
        "drop",
        "score",
        "less",
        "percentage points of accuracy lost right at an intervention",
        "return lost right at an intervention",
    ),
    Column("seeds", "seeds", "number", "more", "number of seeds"),
    Column(
        "recovery",
        "recovered in",
        "number",
        "less",
        "epochs until accuracy recovers to its value before the task boundary, and percentage of boundaries after "
        "which it never does",
        "steps until the return recovers to its value before the intervention, and percentage of interventions after "
        "which it never does",
    ),
    Column("better", "P(> none)", "probability", "more", _BETTER),
    Column("time", "time ×", "ratio", "less", "CPU time of the run relative to none with the same seed"),
    Column("iqm", "IQM", "score", "more", "interquartile mean of the final values [95 % CI, stratified bootstrap]"),
    Column("memory", "memory ×", "ratio", "less", "memory of parameters and the method's state, relative to none"),
    Column("cost", "cost %", "fraction", "less", "percentage of the CPU time spent in interventions"),
    Column("auc", "AUC", "score", "more", "mean accuracy over all epochs"),
    Column("average", "average", "score", "more", "mean accuracy at the end of each task", "mean of all returns"),
    Column("lowest", "lowest", "score", "more", "lowest return between an intervention and the next one"),
    Column(
        "q_bias",
        "Q bias",
        "score",
        "less",
        "final bias of the critic: predicted value minus the discounted return obtained",
    ),
)
OVERALL = (
    COLUMNS[0],
    Column(
        "rank",
        "rank",
        "rank",
        "less",
        "1 + number of methods with a significantly higher mean (– if not run in all settings)",
    ),
    Column(
        "iqm", "IQM %", "fraction", "more", "interquartile mean of all final scores [95 % CI, stratified bootstrap]"
    ),
    Column("gain", "gain %", "fraction", "more", "mean over settings of the mean gain over none"),
    Column(
        "settings",
        "settings",
        "text",
        "more",
        "number of settings in which the method was run, out of all that are compared",
    ),
    Column("mean_rank", "mean rank", "number", "less", "mean rank over settings"),
    Column("better", "P(> none)", "probability", "more", _BETTER),
    Column("runs", "runs", "number", "more", "number of runs in all settings"),
)
NO_TIME = "the column 'time ×' requires 10 s of CPU time per run, the same hardware and threads, and --stack off"
KEYS = tuple(column.key for column in COLUMNS)


def value_of(row: Row, key: str) -> Any:
    """The value by which a row is sorted and filtered: that of an interval, the number of seeds; None if missing."""
    value = row.get(key)
    if isinstance(value, Interval):
        return value.value
    return len(value) if key == "seeds" and value is not None else value


def sort(rows: Sequence[Row], key: str) -> list[Row]:
    """Sort rows by a column, best first; rows without a value come last.

    Raises:
        UserError: The column does not exist.
    """
    column = next((column for column in COLUMNS if column.key == key), None)
    if column is None:
        raise UserError(f"--sort {key}: no column '{key}'{did_you_mean(key, KEYS)} ({', '.join(KEYS)})")
    present = [row for row in rows if value_of(row, key) is not None]
    ordered = sorted(present, key=lambda row: value_of(row, key), reverse=column.better == "more")
    return [*ordered, *(row for row in rows if value_of(row, key) is None)]


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_TEXTS = ("env", "agent", "intervention")


def condition(text: str) -> Callable[[Row], bool]:
    """Parse a ``--filter``, such as ``intervention=rnr*,none``, ``agent!=mlp``, ``seeds>=3`` or ``final>85%``.

    A pattern matches the name alone or the name with its options. Fractions are written as 0.85 or 85%.

    Raises:
        UserError: The syntax is wrong, or the column does not exist.
    """
    found = re.fullmatch(r"\s*([\w-]+)\s*(>=|<=|!=|>|<|=)\s*(.+?)\s*", text)
    if not found:
        raise UserError(
            f"--filter {text}: expected COLUMN=PATTERN or COLUMN>=NUMBER, such as intervention=rnr* or seeds>=3"
        )
    key, sign, wanted = found.groups()
    if key in _TEXTS:
        if sign not in ("=", "!="):
            raise UserError(f"--filter {text}: {key} is text; use {key}=PATTERN or {key}!=PATTERN")
        patterns = [wanted, *(pattern.strip() for pattern in wanted.split(","))]  # values of options may contain commas
        return lambda row: _matches(row[key], patterns) == (sign == "=")
    if key not in KEYS:
        known = [*_TEXTS[:2], *KEYS]
        raise UserError(f"--filter {text}: no column '{key}'{did_you_mean(key, known)} ({', '.join(known)})")
    try:
        number = float(wanted.removesuffix("%")) / (100 if wanted.endswith("%") else 1)
    except ValueError as error:
        raise UserError(f"--filter {text}: '{wanted}' is not a number") from error

    def holds(row: Row) -> bool:
        value = value_of(row, key)
        return value is not None and _COMPARISONS[sign](value, number)

    return holds


def _matches(text: str, patterns: Sequence[str]) -> bool:
    names = (text, text.partition(" ")[0])
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
