"""The content of a leaderboard in any output format: the rows of each setting and over all settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from plastibench.leaderboard.columns import condition, sort
from plastibench.leaderboard.overall import overall
from plastibench.leaderboard.rows import Row, rows
from plastibench.leaderboard.settings import Setting, by_setting, warnings
from plastibench.results.result import Result
from plastibench.results.tags import TRIAL


@dataclass(frozen=True)
class Standings:
    """The content of a leaderboard.

    Attributes:
        tables: Each setting and its rows.
        overall: Rows over all settings; empty if there are fewer than two settings.
        overall_notes: Notes on these rows: which settings are not counted, which methods are not ranked, and why.
    """

    tables: list[tuple[Setting, list[Row]]]
    overall: list[Row]
    overall_notes: list[str]


def standings(
    found: Sequence[Result],
    *,
    sorted_by: str = "rank",
    filters: Sequence[str] = (),
    all_settings: bool = False,
    exclude_tags: Collection[str] = (TRIAL,),
) -> Standings:
    """Compare results.

    Args:
        found: Results.
        sorted_by: A column; best rows first. Rows with equal values are sorted by the final accuracy or return.
        filters: Conditions for the rows to show; see :func:`~plastibench.leaderboard.columns.condition`. They do not
            change ranks and gains.
        all_settings: Count settings with few methods in the table over all settings; see
            :func:`~plastibench.leaderboard.overall.overall`.
        exclude_tags: Leave runs with one of these tags out of the table over all settings.

    Raises:
        UserError: A filter is invalid, or a column does not exist.
    """
    conditions = [condition(text) for text in filters]
    sort([], sorted_by)  # report a wrong column before anything is computed
    tables = []
    for setting in by_setting(found):
        kept = [row for row in rows(setting) if all(holds(row) for holds in conditions)]
        if kept:
            tables.append((setting, sort(kept, sorted_by)))
    shown = {row["intervention"] for _, kept in tables for row in kept}
    settings = [setting for setting, _ in tables]
    together, overall_notes = overall(settings, all_settings=all_settings, exclude_tags=exclude_tags)
    return Standings(tables, [row for row in together if row["intervention"] in shown], overall_notes)


def notes(setting: Setting, shown: Sequence[Row]) -> list[str]:
    """Notes on the table of a setting: which runs are missing, which methods are not ranked, and why."""
    found = [setting.differs] if setting.differs else []
    found += [f"not ranked: {row['intervention']}, {row['not_comparable']}" for row in shown if row["not_comparable"]]
    single = [row["intervention"] for row in shown if len(row["seeds"]) == 1 and not row["not_comparable"]]
    if single:
        found.append(f"not ranked, one seed: {', '.join(single)}")
    for method in setting.methods:
        found += [f"{method.name}: {warning}" for warning in warnings(method.runs.values())]
    if setting.base is None:
        found.append("the gain column is empty: 'none' was not run in this setting")
    return found
