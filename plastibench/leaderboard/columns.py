"""What the leaderboard shows: the columns, their units, in which direction they are better, and which rows to keep."""

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


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        key: Of the rows; what ``--sort`` and ``--filter`` take.
        heading: Over the column.
        unit: ``score``: percent of accuracy, or a return as it is; ``share``: percent; ``ratio``: times that of none.
        better: Whether more or less of it is better.
        meaning: One line.
        spare: Left out first where a window is narrow, the highest number before others; 0: never.
    """

    key: str
    heading: str
    unit: Literal["text", "rank", "number", "score", "share", "ratio", "probability"]
    better: Literal["more", "less"]
    meaning: str
    spare: int = 0


COLUMNS = (
    Column("intervention", "intervention", "text", "less", "name, and options that differ from what it stands for"),
    Column("rank", "rank", "rank", "less", "1 + how many are better beyond doubt (= shared; – one seed)"),
    Column("seeds", "seeds", "number", "more", "how many"),
    Column("final", "final", "score", "more", "accuracy after the last task, or mean of the last returns, ± 95 %"),
    Column("iqm", "IQM", "score", "more", "its interquartile mean [95 %, stratified bootstrap]", 3),
    Column("gain", "over none", "score", "more", "final minus that of none with the same seed, ± 95 %"),
    Column("better", "P(> none)", "probability", "more", "share of the seeds in which it beats none [95 %, Wilson]", 1),
    Column("average", "average", "score", "more", "mean over the ends of the tasks", 8),
    Column("auc", "AUC", "score", "more", "mean accuracy over all epochs", 7),
    Column("drop", "drop", "score", "less", "lost right at the intervention, ± 95 %"),
    Column("lowest", "lowest", "score", "more", "smallest return between an intervention and the next", 9),
    Column("q_bias", "Q bias", "score", "less", "what the critic expects above what comes, at the end", 10),
    Column("recovery", "recovery", "number", "less", "epochs or steps until it is back (share where it never is)", 5),
    Column("time", "time ×", "ratio", "less", "the run's seconds over those of none, same seed and machine", 2),
    Column("memory", "memory ×", "ratio", "less", "bytes of parameters and of what the method keeps, over none's", 4),
    Column("cost", "cost %", "share", "less", "share of the run's time that the intervention itself took", 6),
)
OVERALL = (
    COLUMNS[0],
    Column(
        "rank", "rank", "rank", "less", "1 + how many have a mean that is higher beyond doubt (– not in all of them)"
    ),
    Column("contests", "scenarios", "text", "more", "in how many of them it counts"),
    Column("runs", "runs", "number", "more", "how many, over all scenarios"),
    Column("iqm", "IQM %", "share", "more", "interquartile mean of all final scores [95 %, stratified bootstrap]"),
    Column(
        "gain",
        "over none",
        "share",
        "more",
        "mean over scenarios of the mean gain over none with the same seed, ± 95 %",
    ),
    Column("better", "P(> none)", "probability", "more", "share of these pairs in which it beats none [95 %, Wilson]"),
    Column("mean_rank", "mean rank", "number", "less", "mean of its ranks in the scenarios"),
)
KEYS = tuple(column.key for column in COLUMNS)


def value_of(row: Row, key: str) -> Any:
    """The figure of a row that is sorted and filtered by; None where there is none."""
    value = row.get(key)
    if isinstance(value, Interval):
        return value.value
    return len(value) if key == "seeds" and value is not None else value


def sort(rows: Sequence[Row], key: str) -> list[Row]:
    """The best first, by a column; rows without the figure last.

    Raises:
        UserError: No such column.
    """
    column = next((column for column in COLUMNS if column.key == key), None)
    if column is None:
        raise UserError(f"--sort {key}: no such column{did_you_mean(key, KEYS)} ({', '.join(KEYS)})")
    there = [row for row in rows if value_of(row, key) is not None]
    ordered = sorted(there, key=lambda row: value_of(row, key), reverse=column.better == "more")
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
    """What ``--filter`` says: ``intervention=rnr*,none``, ``agent!=mlp``, ``seeds>=3``, ``final>85%``.

    Names and patterns stand for the name alone or for the name with its options; shares are 0.85 or 85%.

    Raises:
        UserError: It cannot be read, or there is no such column.
    """
    found = re.fullmatch(r"\s*([\w-]+)\s*(>=|<=|!=|>|<|=)\s*(.+?)\s*", text)
    if not found:
        raise UserError(f"--filter {text}: expected COLUMN=PATTERN or COLUMN>=NUMBER, as intervention=rnr* or seeds>=3")
    key, sign, wanted = found.groups()
    if key in _TEXTS:
        if sign not in ("=", "!="):
            raise UserError(f"--filter {text}: {key} is text; use {key}=PATTERN or {key}!=PATTERN")
        patterns = [wanted, *(pattern.strip() for pattern in wanted.split(","))]  # an option may have commas of its own
        return lambda row: _matches(row[key], patterns) == (sign == "=")
    if key not in KEYS:
        known = [*_TEXTS[:2], *KEYS]
        raise UserError(f"--filter {text}: no column '{key}'{did_you_mean(key, known)} ({', '.join(known)})")
    try:
        number = float(wanted.removesuffix("%")) / (100 if wanted.endswith("%") else 1)
    except ValueError as error:
        raise UserError(f"--filter {text}: '{wanted}' is no number") from error

    def holds(row: Row) -> bool:
        value = value_of(row, key)
        return value is not None and _COMPARISONS[sign](value, number)

    return holds


def _matches(text: str, patterns: Sequence[str]) -> bool:
    names = (text, text.partition(" ")[0])
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
