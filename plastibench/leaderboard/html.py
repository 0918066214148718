"""The leaderboard as a self-contained HTML page: sortable tables with plots of the intervals."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plastibench.leaderboard.columns import OVERALL, Column, value_of
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Setting, origin
from plastibench.leaderboard.standings import Standings, notes
from plastibench.leaderboard.text import cells, closing_legends, columns_of, headings, legends, meaning
from plastibench.results.confidence import Interval
from plastibench.utils.pages import load_template

_TEMPLATE = "leaderboard.html.j2"
_WIDTH, _MARGIN = 120, 5  # size of an interval plot, in pixels
_PHONE = ("intervention", "final", "drop", "seeds", "settings", "iqm")  # columns on a phone, unless all are requested
_REACH = 3  # interquartile ranges beyond the quartiles; a mean outside is an outlier, drawn as a hollow dot at the edge


@dataclass(frozen=True)
class _Scale:
    """Maps values to horizontal pixels of the plots in one table."""

    low: float
    high: float

    @classmethod
    def of(cls, intervals: Sequence[Interval]) -> _Scale:
        """A scale that spans all means except outliers, plus half a typical interval on both sides."""
        means = [interval.value for interval in intervals]
        halves = [(each.high - each.low) / 2 for each in intervals if each.low is not None and each.high is not None]
        room = statistics.median(halves) if halves else 0.0
        if len(means) > 3:
            first, _, third = statistics.quantiles(means, n=4)
            reach = _REACH * (third - first)
            means = [mean for mean in means if first - reach <= mean <= third + reach]
        low, high = min(means) - room, max(means) + room
        return cls(low, high) if high > low else cls(low - 0.5, high + 0.5)

    def x(self, value: float) -> float:
        """Horizontal position of a value; values outside of the scale are at its edges."""
        fraction = (value - self.low) / (self.high - self.low)
        return _MARGIN + min(1.0, max(0.0, fraction)) * (_WIDTH - 2 * _MARGIN)

    def plot(self, interval: Interval) -> dict[str, Any]:
        """Positions of the dot and of the ends of the bar, which are empty if the interval has no bounds."""
        bounds = [bound for bound in interval[1:] if bound is not None]
        is_outlier = not self.low <= interval.value <= self.high
        return {
            "x": f"{self.x(interval.value):.1f}",
            "bar": [f"{self.x(bound):.1f}" for bound in bounds],
            "is_outlier": is_outlier,
        }


def page(shown: Standings, plots: Mapping[str, Sequence[tuple[str, bytes]]] | None = None) -> str:
    """Make the page.

    Args:
        shown: The leaderboard.
        plots: Title of a setting to its plots: caption and content of a PNG file.
    """
    sections = [_section(setting, rows, (plots or {}).get(setting.title, ())) for setting, rows in shown.tables]
    if shown.overall:
        sections.insert(0, _overall_section(shown))
    columns = [(setting, columns_of(setting, rows)) for setting, rows in shown.tables]
    meanings = {
        kind: [(heading, text, _is_optional_heading(heading, kind)) for heading, text in explained.items()]
        for kind, explained in legends(columns, OVERALL if shown.overall else ()).items()
    }
    runs = sum(len(row["seeds"]) for _, rows in shown.tables for row in rows)
    template = load_template("plastibench.leaderboard", _TEMPLATE)
    legend = "; ".join(closing_legends(shown))
    return template.render(sections=sections, meanings=meanings, legend=legend, runs=runs, width=_WIDTH) + "\n"


def _section(setting: Setting, rows: Sequence[Row], plots: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """What the template shows of a setting."""
    columns = columns_of(setting, rows)
    scale = _Scale.of([row["final"] for row in rows])
    low, high = (f"{bound:.4g}" if setting.is_rl else f"{100 * bound:.0f}" for bound in (scale.low, scale.high))
    return {
        "title": setting.title,
        "head": _head(columns, setting),
        "scale": f"{low} … {high}",
        "rows": [
            {
                "cells": _cells(row, columns, setting),
                "final": row["final"].value,
                "plot": scale.plot(row["final"]),
            }
            for row in rows
        ],
        "notes": [*notes(setting, rows), origin(setting.runs)],
        "plots": [(caption, base64.b64encode(png).decode()) for caption, png in plots],
    }


def _overall_section(shown: Standings) -> dict[str, Any]:
    """What the template shows over all settings: no plots."""
    rows = [{"cells": _cells(row, OVERALL), "plot": None} for row in shown.overall]
    head = _head(OVERALL)
    return {"title": "all settings", "head": head, "scale": "", "rows": rows, "notes": shown.overall_notes, "plots": []}


def _head(columns: Sequence[Column], setting: Setting | None = None) -> list[dict[str, Any]]:
    """What the template shows of each heading."""
    return [
        {
            "text": heading,
            "better": column.better,
            "meaning": meaning(column, setting),
            "is_optional": _is_optional(column, setting),
        }
        for heading, column in zip(headings(columns, setting), columns, strict=True)
    ]


def _cells(row: Row, columns: Sequence[Column], setting: Setting | None = None) -> list[tuple[str, Any, bool]]:
    """Text and sort key of each cell, and whether a phone hides it."""
    values = (value_of(row, column.key) for column in columns)
    return [
        (text, "" if value is None else value, _is_optional(column, setting))
        for text, value, column in zip(cells(row, columns, setting), values, columns, strict=True)
    ]


def _is_optional(column: Column, setting: Setting | None) -> bool:
    """Whether a phone hides a column until the user requests all columns."""
    return column.key not in _PHONE or (column.key == "iqm" and setting is not None)


def _is_optional_heading(heading: str, kind: str) -> bool:
    key = heading.removesuffix(" %").lower()
    return key not in _PHONE or (key == "iqm" and kind != "all settings")
