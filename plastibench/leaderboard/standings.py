"""All that a leaderboard shows, in whatever form: the rows of every contest and those over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plastibench.leaderboard.columns import condition, sort
from plastibench.leaderboard.overall import overall
from plastibench.leaderboard.rows import Row, rows
from plastibench.leaderboard.settings import Setting, contests
from plastibench.results.result import Result


@dataclass(frozen=True)
class Standings:
    """What is shown.

    Attributes:
        tables: Each contest and its rows.
        overall: Rows over all contests; empty where there are fewer than two.
        overall_notes: What a reader of these must know: what is not counted, who is not ranked, and why.
    """

    tables: list[tuple[Setting, list[Row]]]
    overall: list[Row]
    overall_notes: list[str]


def standings(found: Sequence[Result], *, sorted_by: str = "final", filters: Sequence[str] = ()) -> Standings:
    """Compare results.

    Args:
        found: Results.
        sorted_by: A column; the best come first.
        filters: Conditions that every row shown fulfils, see :func:`~plastibench.leaderboard.columns.condition`. Ranks
            and gains are those among all entries.

    Raises:
        UserError: A filter or column that does not exist.
    """
    conditions = [condition(text) for text in filters]
    sort([], sorted_by)  # a mistake is told before anything is computed
    tables = []
    for contest in contests(found):
        kept = [row for row in rows(contest) if all(holds(row) for holds in conditions)]
        if kept:
            tables.append((contest, sort(kept, sorted_by)))
    shown = {row["intervention"] for _, kept in tables for row in kept}
    together, told = overall([contest for contest, _ in tables])
    return Standings(tables, [row for row in together if row["intervention"] in shown], told)


def notes(contest: Setting, made: Sequence[Row]) -> list[str]:
    """What a reader of a contest's table must know: what is not in it, what is not ranked, and why."""
    found = [contest.differs] if contest.differs else []
    found += [f"not ranked: {row['intervention']}, {row['apart']}" for row in made if row["apart"]]
    single = [row["intervention"] for row in made if len(row["seeds"]) == 1 and not row["apart"]]
    if single:
        found.append(f"not ranked, one seed: {', '.join(single)}")
    if contest.base is None:
        found.append("no run of none, over which gains would be counted")
    return found
