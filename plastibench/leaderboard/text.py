"""The leaderboard as text: for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from plastibench.leaderboard.columns import COLUMNS, OVERALL, Column, value_of
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Setting
from plastibench.leaderboard.standings import Standings, notes
from plastibench.results.confidence import Interval
from plastibench.utils.tables import format_recovery, markdown_table, text_table

_WITH_BOUNDS = ("final", "iqm", "gain", "better", "drop")
_KEYS = (
    *("scope", "env", "agent", "rank", "tied"),
    *(column.key for column in COLUMNS if column.key != "rank"),
    *("unrecovered", "seconds", "contests", "mean_rank", "apart"),
)


def table(shown: Standings, width: int = 0) -> str:
    """For the terminal; where it is narrower than the table (0: it is not), the columns that can best be spared go."""
    parts, used, hidden = [], {}, 0
    for contest, made in shown.tables:
        columns, lines = _fitting(made, contest, width)
        hidden = max(hidden, len(columns_of(contest)) - len(columns))
        used.update({column.heading: column.meaning for column in columns})
        parts.append("\n\n".join([contest.title, text_table(headings(columns, contest), lines)]))
        parts += _wrapped(notes(contest, made))
    if shown.overall:
        drawn = text_table(headings(OVERALL), [cells(row, OVERALL) for row in shown.overall])
        parts.append(f"all scenarios\n\n{drawn}")
        parts += _wrapped(shown.overall_notes)
        used = {column.heading: column.meaning for column in OVERALL} | used
    more = [f"{hidden} columns more in a wider window, or with --format csv"] if hidden else []
    del used["intervention"]
    legend = "; ".join([*(f"{heading}: {meaning}" for heading, meaning in used.items()), *more])
    return "\n\n".join([*parts, textwrap.fill(legend, min(width or 120, 120), break_on_hyphens=False)])


def markdown(shown: Standings) -> str:
    """The same as Markdown, with every column."""
    parts = []
    for contest, made in shown.tables:
        columns = columns_of(contest)
        lines = [cells(row, columns, contest) for row in made]
        parts += [
            f"### {_escaped(contest.title)}",
            _quoted(headings(columns, contest), lines),
            *_listed(notes(contest, made)),
        ]
    if shown.overall:
        lines = [cells(row, OVERALL) for row in shown.overall]
        parts += ["### all scenarios", _quoted(headings(OVERALL), lines), *_listed(shown.overall_notes)]
    meanings = {column.heading: column.meaning for column in (*OVERALL, *COLUMNS) if column.key != "intervention"}
    return "\n\n".join([*parts, "\n".join(f"- {heading}: {meaning}" for heading, meaning in meanings.items())])


def as_json(shown: Standings) -> str:
    """A list of rows; a figure with an interval is an object with ``value``, ``low`` and ``high``."""

    def plain(value: Any) -> Any:
        return value._asdict() if isinstance(value, Interval) else value

    return json.dumps([{key: plain(row.get(key)) for key in _KEYS} for row in _every(shown)], indent=1)


def as_csv(shown: Standings) -> str:
    """One line per row; the bounds of intervals have columns of their own."""
    lines: list[dict[str, Any]] = []
    for row in _every(shown):
        line: dict[str, Any] = {}
        for key in _KEYS:
            line[key] = value_of(row, key)
            if key in _WITH_BOUNDS:
                bounds = row.get(key) or Interval(0.0)
                line[f"{key}-low"], line[f"{key}-high"] = bounds.low, bounds.high
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def headings(columns: Sequence[Column], contest: Setting | None = None) -> list[str]:
    """Over the columns; accuracies are in percent."""
    percent = contest is not None and not contest.is_rl
    return [f"{column.heading} %" if percent and column.unit == "score" else column.heading for column in columns]


def cells(row: Row, columns: Sequence[Column], contest: Setting | None = None) -> list[str]:
    """A row as it is shown."""
    return [_cell(row, column, is_rl=contest is not None and contest.is_rl) for column in columns]


def columns_of(contest: Setting) -> list[Column]:
    """Those that say something about a contest."""
    without = ("auc",) if contest.is_rl else ("lowest", "q_bias")
    return [column for column in COLUMNS if column.key not in without]


def _fitting(made: Sequence[Row], contest: Setting, width: int) -> tuple[list[Column], list[list[str]]]:
    """The columns that fit into a width, and their cells."""
    columns = columns_of(contest)
    while True:
        lines = [cells(row, columns, contest) for row in made]
        spare = max(columns, key=lambda column: column.spare)
        widest = len(text_table(headings(columns, contest), lines).splitlines()[1])
        if not width or widest <= width or not spare.spare:
            return columns, lines
        columns.remove(spare)


def _quoted(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, [["`" + first.replace("`", "'") + "`", *others] for first, *others in lines])


def _listed(found: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {_escaped(note)}" for note in found)] if found else []


def _escaped(text: str) -> str:
    """Names may come from elsewhere: no HTML in them."""
    return text.replace("<", "&lt;").replace("`", "'")


def _wrapped(found: Sequence[str]) -> list[str]:
    return (
        ["\n".join(textwrap.fill(note, 120, subsequent_indent="  ", break_on_hyphens=False) for note in found)]
        if found
        else []
    )


def _every(shown: Standings) -> list[Row]:
    single = [{"scope": "scenario", **row} for _, made in shown.tables for row in made]
    return [*single, *({"scope": "all scenarios", **row} for row in shown.overall)]


# Cells -----------------------------------------------------------------------------------------------------------


def _cell(row: Row, column: Column, is_rl: bool) -> str:
    value = row[column.key]
    if column.key == "contests":
        return f"{value} of {row['of']}"
    if column.key == "recovery":
        return format_recovery(value, row["unrecovered"], 1)
    if value is None:
        return "–"
    if column.key == "rank":
        return f"{value}{'=' if row['tied'] else ''}"
    if column.key == "seeds":
        return str(len(value))
    if column.unit == "text":
        return str(value)
    percent = column.unit == "share" or (column.unit == "score" and not is_rl)
    scale, digits = (100.0, 1) if percent else (1.0, 2)
    if not isinstance(value, Interval):
        return str(value) if isinstance(value, int) else _number(scale * value, digits)
    middle = _number(scale * value.value, digits, sign=column.key == "gain")
    if value.low is None or value.high is None:
        return middle
    if column.key in ("iqm", "better"):
        return f"{middle} [{_number(scale * value.low, digits)}, {_number(scale * value.high, digits)}]"
    return f"{middle} ± {_number(scale * (value.high - value.low) / 2, digits)}"


def _number(value: float, digits: int, sign: bool = False) -> str:
    rounded = round(value, digits) + 0.0  # no -0.0
    return f"{rounded:+.{digits}f}" if sign else f"{rounded:.{digits}f}"
