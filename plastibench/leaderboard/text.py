"""The leaderboard as text: for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from plastibench.leaderboard.columns import COLUMNS, NO_TIME, OVERALL, SIGNIFICANT, Column, value_of
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Setting
from plastibench.leaderboard.standings import Standings, notes
from plastibench.results.confidence import PLUS_MINUS, Interval
from plastibench.utils.tables import fitting_columns, format_recovery, hidden_columns, markdown_table, text_table

_ALWAYS = ("intervention", "rank", "final", "seeds")
_WIDEST = 120  # characters of a paragraph
_WITH_BOUNDS = ("final", "iqm", "gain", "better", "drop")
_KEYS = (
    *("scope", "env", "agent", "rank", "tied"),
    *(column.key for column in COLUMNS if column.key != "rank"),
    *("unrecovered", "seconds", "settings", "mean_rank", "not_comparable"),
)


def table(shown: Standings, width: int = 0) -> str:
    """Format the leaderboard for a terminal of this width, without the columns that do not fit; 0: show all columns."""
    parts, fitting, hidden = [], [], 0
    for setting, made in shown.tables:
        every = columns_of(setting, made)
        columns, drawn = _drawn(every, made, setting, width)
        hidden = max(hidden, len(every) - len(columns))
        fitting.append((setting, columns))
        parts += [*_wrapped([setting.title], width), drawn, *_wrapped(notes(setting, made), width)]
    overall_columns: list[Column] = []
    if shown.overall:
        overall_columns, drawn = _drawn(list(OVERALL), shown.overall, None, width)
        hidden = max(hidden, len(OVERALL) - len(overall_columns))
        parts += ["all settings", drawn]
    parts += _wrapped(shown.overall_notes, width)
    explained, known = [], set[tuple[str, str]]()
    for kind, meanings in legends(fitting, overall_columns).items():
        new = {heading: meaning for heading, meaning in meanings.items() if (heading, meaning) not in known}
        known |= new.items()
        explained.append(f"{kind}: {'; '.join(f'{heading}: {meaning}' for heading, meaning in new.items())}")
    explained.append("; ".join(closing_legends(shown)))
    return "\n\n".join([*parts, *(_filled(text, width) for text in (*explained, *hidden_columns(hidden)) if text)])


def markdown(shown: Standings, most: int | None = None, unbreakable: bool = False) -> str:
    """Format the leaderboard as Markdown.

    Args:
        shown: The leaderboard.
        most: Largest number of columns of a table, the most important ones; None: all columns.
        unbreakable: Use non-breaking spaces and hyphens in headings and values.
    """

    def drawn(columns: Sequence[Column], made: Sequence[Row], setting: Setting | None) -> str:
        header, lines = headings(columns, setting), [cells(row, columns, setting) for row in made]
        if unbreakable:
            header = [_unbreakable(text) for text in header]
            lines = [[name, *map(_unbreakable, values)] for name, *values in lines]
        return _quoted(header, lines)

    parts = []
    tables = [(setting, columns_of(setting, made)[:most]) for setting, made in shown.tables]
    for (setting, columns), (_, made) in zip(tables, shown.tables, strict=True):
        parts += [f"### {escaped(setting.title)}", drawn(columns, made, setting), *listed(notes(setting, made))]
    overall = OVERALL[:most] if shown.overall else ()
    if shown.overall:
        parts += ["### all settings", drawn(overall, shown.overall, None)]
    parts += listed(shown.overall_notes)
    for kind, meanings in legends(tables, overall).items():
        parts += [f"{kind}:", "\n".join(f"- {heading}: {meaning}" for heading, meaning in meanings.items())]
    return "\n\n".join([*parts, *([closing] if (closing := "; ".join(closing_legends(shown))) else [])])


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


def legends(
    tables: Sequence[tuple[Setting, Sequence[Column]]], overall: Sequence[Column] = ()
) -> dict[str, dict[str, str]]:
    """Explain the columns, for each kind of table.

    Args:
        tables: Settings and the columns shown of each.
        overall: Columns shown of the table over all settings; empty if there is none.

    Returns:
        Kind of table to printed heading to meaning.
    """
    found: dict[str, dict[str, str]] = {}
    for kind, is_rl in (("task streams", False), ("RL environments", True)):
        of_kind = [(setting, columns) for setting, columns in tables if setting.is_rl == is_rl]
        if of_kind:
            shown = [column for column in COLUMNS if any(column in columns for _, columns in of_kind)]
            found[kind] = _meanings(shown, of_kind[0][0])
    if overall:
        found["all settings"] = _meanings(overall)
    return found


def closing_legends(shown: Standings) -> list[str]:
    """Return the parts of the legend that do not explain columns."""
    rows = [row for _, made in shown.tables for row in made] + shown.overall
    intervals = [value for row in rows for value in row.values() if isinstance(value, Interval)]
    found = [PLUS_MINUS] if any(interval.low is not None for interval in intervals) else []
    found += [SIGNIFICANT] if any(row["rank"] is not None for row in rows) else []
    with_time = all(any(row["time"] is not None for row in made) for _, made in shown.tables)
    return found if with_time else [*found, NO_TIME]


def headings(columns: Sequence[Column], setting: Setting | None = None) -> list[str]:
    """Headings of columns; accuracies are in percent."""
    percent = setting is not None and not setting.is_rl
    return [f"{column.heading} %" if percent and column.unit == "score" else column.heading for column in columns]


def cells(row: Row, columns: Sequence[Column], setting: Setting | None = None) -> list[str]:
    """Format the cells of a row."""
    return [_cell(row, column, is_rl=setting is not None and setting.is_rl) for column in columns]


def columns_of(setting: Setting, made: Sequence[Row]) -> list[Column]:
    """Return the columns that apply to a setting and have a value in at least one row."""
    without = ("auc",) if setting.is_rl else ("lowest", "q_bias")
    return [
        column
        for column in COLUMNS
        if column.key in _ALWAYS or (column.key not in without and any(row[column.key] is not None for row in made))
    ]


def meaning(column: Column, setting: Setting | None = None) -> str:
    """The explanation of a column."""
    return (setting is not None and setting.is_rl and column.rl_meaning) or column.meaning


def _drawn(columns: list[Column], made: Sequence[Row], setting: Setting | None, width: int) -> tuple[list[Column], str]:
    """Return the columns that fit into a width, and the table made of them."""
    header, lines = headings(columns, setting), [cells(row, columns, setting) for row in made]
    count = fitting_columns(header, lines, width)
    return columns[:count], text_table(header[:count], [line[:count] for line in lines], width)


def _meanings(columns: Sequence[Column], setting: Setting | None = None) -> dict[str, str]:
    """Printed heading to meaning."""
    printed = zip(headings(columns, setting), columns, strict=True)
    return {heading: meaning(column, setting) for heading, column in printed if column.key != "intervention"}


def _unbreakable(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{NON-BREAKING HYPHEN}")


def _quoted(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, [["`" + first.replace("`", "'") + "`", *others] for first, *others in lines])


def listed(found: Sequence[str]) -> list[str]:
    """A Markdown list of notes; nothing if there are none."""
    return ["\n".join(f"- {escaped(note)}" for note in found)] if found else []


def escaped(text: str) -> str:
    """Remove markup: names may come from submitted results."""
    return text.replace("<", "&lt;").replace("`", "'")


def _wrapped(found: Sequence[str], width: int) -> list[str]:
    return ["\n".join(_filled(note, width) for note in found)] if found else []


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, min(width or _WIDEST, _WIDEST), subsequent_indent="  ", break_on_hyphens=False)


def _every(shown: Standings) -> list[Row]:
    single = [{"scope": "setting", **row} for _, made in shown.tables for row in made]
    return [*single, *({"scope": "all settings", **row} for row in shown.overall)]


# Cells -----------------------------------------------------------------------------------------------------------


def _cell(row: Row, column: Column, is_rl: bool) -> str:
    value = row[column.key]
    if column.key == "settings":
        return f"{value} of {row['of']}"
    if column.key == "recovery":
        return format_recovery(value, row["unrecovered"], *(("steps", 0) if is_rl else ("epochs", 1)))
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
