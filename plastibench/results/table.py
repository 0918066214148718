"""Many results as one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from plastibench.config.code_digest import short_code
from plastibench.config.errors import UserError
from plastibench.config.registry import load
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_PARTS = ("env", "agent", "intervention")


class Results(list[Result]):
    """A list of results."""

    def to_pandas(self, rows: Literal["run", "evaluation"] = "run") -> DataFrame:
        """Make a table of the results.

        Args:
            rows: What a row is.

                - ``run``: one run, with all values of its summary and cost.
                - ``evaluation``: one evaluation of a run, with ``task`` (from 0), ``position`` (epochs or environment
                  steps since the start of the run) and ``value`` (accuracy or return).

        Returns:
            A ``pandas.DataFrame``. Each row names its run in ``id``, ``env``, ``agent``, ``intervention``, ``code`` and
            ``seed``. ``code`` is the beginning of the digest of the intervention's code, as in the leaderboard, and
            empty if it is not a plugin. ``tags`` contains the tags of the run, separated by spaces. Options that differ
            from the default in at least one of the runs have a column of their own, such as ``agent.lr`` or
            ``run.every``. Missing values are NaN.

        Raises:
            UserError: pandas is not installed, or ``rows`` is wrong.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("tables need pandas: pip install 'plastibench[pandas]'") from error
        if rows not in ("run", "evaluation"):
            raise UserError(f"rows is {rows!r}; expected 'run' or 'evaluation'")
        options = self._changed_options()
        lines: list[dict[str, Any]] = []
        for result in self:
            line = {"id": result.id, **{part: getattr(result, part) for part in _PARTS}}
            line["code"] = short_code(result.code.get("intervention", ""))
            line |= {"seed": result.seed, "tags": " ".join(sorted(result.tags))}
            line |= {f"{part}.{name}": _options(result, part).get(name) for part, name in options}
            if rows == "run":
                content = result.to_dict()
                lines.append({**line, **content["summary"], **content["cost"]})
            else:
                lines += [{**line, "task": t, "position": p, "value": v} for t, p, v in result.evaluations()]
        return pandas.DataFrame(lines)

    def plot(self, kind: str = "timeline", **options: Any) -> Figure:
        """Plot the results: by default, accuracy within and across tasks, or return over steps, for all methods.

        Args:
            kind: Kind of plot, as in ``plastibench plot``.
            **options: Options of the kind, such as ``metric``.

        Returns:
            The figure; a notebook shows it.

        Raises:
            UserError: matplotlib is not installed, there are no results, or a kind or option is unknown.
        """
        if not self:
            raise UserError("there are no results to plot")
        figure: Figure = load("plastibench.plotting:draw")(kind, self, **options)
        return figure

    def _changed_options(self) -> list[tuple[str, str]]:
        """Part and name of each option that differs from its default in at least one result."""
        found: dict[tuple[str, str], None] = {}
        for result in self:
            for part in _PARTS:
                found.update(dict.fromkeys((part, name) for name in getattr(result.changed, part)))
            scheduled = [*result.schedule, *(["every"] if result.every else [])]
            found.update(dict.fromkeys(("run", name) for name in scheduled))
        return list(found)


def _options(result: Result, part: str) -> dict[str, Any]:
    if part == "run":
        return {**result.run, **result.schedule, "every": result.every}
    return dict(getattr(result.options, part))
