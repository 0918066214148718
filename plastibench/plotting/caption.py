"""The caption below a plot: number of seeds, confidence intervals, commit, hardware and precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plastibench.leaderboard import by_group
from plastibench.plotting.series import MIN_SEEDS
from plastibench.results.result import Hardware, Result
from plastibench.utils.tables import printable

_MAX_LISTED = 4  # commits, processors, precisions


def caption(results: Sequence[Result], *sentences: str, intervals: str = "bands") -> str:
    """Write the caption of a plot.

    Args:
        results: The results in the plot.
        *sentences: What the plot shows beyond its axis labels.
        intervals: How confidence intervals are drawn: ``bands``, ``bars``, both, or an empty string for none.
    """
    counts = {len(runs) for runs in by_group(results)}
    least, most = min(counts), max(counts)
    mean = f"Mean over {least}–{most} seeds" if least < most else f"Mean over {most} seeds" if most > 1 else "One seed"
    parts = [*sentences]
    if intervals and most >= MIN_SEEDS:
        parts.append(f"{mean}; {intervals}: 95 % confidence interval over seeds (Student's\u00a0t).")
        if least < MIN_SEEDS:
            parts.append("With one or two seeds, each seed is drawn and no interval is shown.")
    elif intervals and most > 1:
        parts.append(f"{mean}; each seed is drawn and no interval is shown.")
    else:
        parts.append(f"{mean}.")
    return " ".join([*parts, _origin(results)])


def _origin(results: Iterable[Result]) -> str:
    """Commit, hardware and precision in one sentence; several of each if they differ."""
    origins = [result.origin for result in results]
    commits = _listed(_short(origin.commit or "") for origin in origins)
    hardware = _listed(_hardware(origin.hardware) for origin in origins)
    precisions = _listed(origin.precision for origin in origins)
    return f"Commit {commits}; {hardware}; {precisions}."


def _short(commit: str) -> str:
    """Seven digits, followed by ``+changes`` if there were uncommitted changes."""
    digits, plus, changes = commit.partition("+")
    return f"{digits[:7]}{plus}{changes}" if digits else "unknown"


def _hardware(hardware: Hardware) -> str:
    processor, device = hardware.processor, hardware.device
    return f"{processor} (CPU)" if device == "cpu" else f"{device} (host: {processor})"


def _listed(values: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(values))
    more = len(distinct) - _MAX_LISTED
    return printable(" / ".join(distinct[:_MAX_LISTED])) + (f" and {more} more" if more > 0 else "")
