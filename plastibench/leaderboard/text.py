"""The leaderboard as text: for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from plastibench.leaderboard.columns import COLUMNS, LEGEND, OVERALL, Column, value_of
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Setting
from plastibench.leaderboard.standings import Standings, notes
from plastibench.results.confidence import Interval
from plastibench.utils.tables import format_recovery, markdown_table, text_table

_WITH_BOUNDS = ("final", "iqm", "gain", "better", "drop")
_KEYS = (
    *("scope", "env", "agent", "rank", "tied"),
    *(column.key for column in COLUMNS if column.key != "rank"),
    *("unrecovered", "seconds", "settings", "mean_rank", "not_comparable"),
)


def table(shown: Standings, width: int = 0) -> str:
    """Format the leaderboard for a terminal of this width, hiding columns that do not fit; 0: show all columns."""
    parts, fitting, hidden = [], [], 0
    for setting, made in shown.tables:
        columns, lines = _fitting(made, setting, width)
        hidden = max(hidden, len(columns_of(setting)) - len(columns))
        fitting.append((setting, columns))
        parts.append("\n\n".join([setting.title, text_table(headings(columns, setting), lines)]))
        parts += _wrapped(notes(setting, made))
    if shown.overall:
        drawn = text_table(headings(OVERALL), [cells(row, OVERALL) for row in shown.overall])
        parts.append(f"all settings\n\n{drawn}")
        parts += _wrapped(shown.overall_notes)
    more = [f"{hidden} more columns in a wider terminal, or with --format csv"] if hidden else []
    explained = [
        f"{kind}: {'; '.join(f'{heading}: {meaning}' for heading, meaning in meanings.items())}"
        for kind, meanings in legends(fitting, with_overall=bool(shown.overall)).items()
    ]
    explained.append("; ".join([LEGEND, *more]))
    return "\n\n".join([*parts, *(textwrap.fill(x, min(width or 120, 120), break_on_hyphens=False) for x in explained)])


def markdown(shown: Standings) -> str:
    """Format the leaderboard as Markdown, with all columns."""
    parts = []
    for setting, made in shown.tables:
        columns = columns_of(setting)
        lines = [cells(row, columns, setting) for row in made]
        parts += [
            f"### {_escaped(setting.title)}",
            _quoted(headings(columns, setting), lines),
            *_listed(notes(setting, made)),
        ]
    if shown.overall:
        lines = [cells(row, OVERALL) for row in shown.overall]
        parts += ["### all settings", _quoted(headings(OVERALL), lines), *_listed(shown.overall_notes)]
    shown_columns = [(setting, columns_of(setting)) for setting, _ in shown.tables]
    for kind, meanings in legends(shown_columns, with_overall=bool(shown.overall)).items():
        parts += [f"{kind}:", "\n".join(f"- {heading}: {meaning}" for heading, meaning in meanings.items())]
    return "\n\n".join([*parts, LEGEND])


def as_json(shown: Standings) -> str:
    """Format the leaderboard as a JSON list of rows; intervals are objects with ``value``, ``low`` and ``high``."""

    def plain(value: Any) -> Any:
        return value._asdict() if isinstance(value, Interval) else value

    return json.dumps([{key: plain(row.get(key)) for key in _KEYS} for row in _every(shown)], indent=1)


def as_csv(shown: Standings) -> str:
    """Format the leaderboard as CSV, a line per row; the bounds of intervals are separate columns."""
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


def legends(tables: Sequence[tuple[Setting, Sequence[Column]]], *, with_overall: bool) -> dict[str, dict[str, str]]:
    """Explain the columns, for each kind of table.

    Args:
        tables: Settings and the columns shown of each.
        with_overall: Whether there is a table over all settings.

    Returns:
        Kind of table to printed heading to meaning.
    """
    found: dict[str, dict[str, str]] = {}
    for setting, columns in tables:
        kind = "RL environments" if setting.is_rl else "task streams"
        found.setdefault(kind, {}).update(_meanings(columns, setting))
    if with_overall:
        found["all settings"] = _meanings(OVERALL)
    return found


def headings(columns: Sequence[Column], setting: Setting | None = None) -> list[str]:
    """Headings of columns; accuracies are in percent."""
    percent = setting is not None and not setting.is_rl
    return [f"{column.heading} %" if percent and column.unit == "score" else column.heading for column in columns]


def cells(row: Row, columns: Sequence[Column], setting: Setting | None = None) -> list[str]:
    """Format the cells of a row."""
    return [_cell(row, column, is_rl=setting is not None and setting.is_rl) for column in columns]


def columns_of(setting: Setting) -> list[Column]:
    """The columns that apply to a setting."""
    without = ("auc",) if setting.is_rl else ("lowest", "q_bias")
    return [column for column in COLUMNS if column.key not in without]


def _fitting(made: Sequence[Row], setting: Setting, width: int) -> tuple[list[Column], list[list[str]]]:
    """The columns that fit into a width, and their cells."""
    columns = columns_of(setting)
    while True:
        lines = [cells(row, columns, setting) for row in made]
        last = max(columns, key=lambda column: column.hide_order)
        widest = len(text_table(headings(columns, setting), lines).splitlines()[1])
        if not width or widest <= width or not last.hide_order:
            return columns, lines
        columns.remove(last)


def _meanings(columns: Sequence[Column], setting: Setting | None = None) -> dict[str, str]:
    """Printed heading to meaning."""
    printed = zip(headings(columns, setting), columns, strict=True)
    return {heading: column.meaning for heading, column in printed if column.key != "intervention"}


def _quoted(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, [["`" + first.replace("`", "'") + "`", *others] for first, *others in lines])


def _listed(found: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {_escaped(note)}" for note in found)] if found else []


def _escaped(text: str) -> str:
    """Remove markup: names may come from submitted results."""
    return text.replace("<", "&lt;").replace("`", "'")


def _wrapped(found: Sequence[str]) -> list[str]:
    return (
        ["\n".join(textwrap.fill(note, 120, subsequent_indent="  ", break_on_hyphens=False) for note in found)]
        if found
        else []
    )


def _every(shown: Standings) -> list[Row]:
    single = [{"scope": "setting", **row} for _, made in shown.tables for row in made]
    return [*single, *({"scope": "all settings", **row} for row in shown.overall)]


# Cells -----------------------------------------------------------------------------------------------------------


def _cell(row: Row, column: Column, is_rl: bool) -> str:
    value = row[column.key]
    if column.key == "settings":
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
    percent = column.unit == "fraction" or (column.unit == "score" and not is_rl)
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
