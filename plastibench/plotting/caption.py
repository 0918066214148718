"""The caption below a figure, from the results it shows: seeds and intervals, commit, hardware, precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plastibench.leaderboard import by_group
from plastibench.plotting.over_seeds import ENOUGH
from plastibench.results.result import Hardware, Result
from plastibench.utils.tables import printable

_SHOWN = 4  # commits and machines that are named


def caption(found: Sequence[Result], *sentences: str, intervals: str = "bands") -> str:
    """What a person must know to read a figure.

    Args:
        found: The results that are shown.
        *sentences: What the figure shows, where axes do not say it.
        intervals: What shows the intervals: bands, bars; empty where nothing does.
    """
    counts = {len(runs) for runs in by_group(found)}
    seeds = sorted({min(counts), max(counts)})
    spread = "–".join(map(str, seeds)) + (" seed" if seeds == [1] else " seeds")
    said = [*sentences]
    if not intervals:
        said.append(f"Means over {spread}.")
    elif max(counts) >= ENOUGH:
        said.append(f"Means over {spread}; {intervals}: 95 % confidence intervals (t over seeds).")
    else:
        said.append(f"Means over {spread}." if max(counts) > 1 else "One seed.")
    if intervals and counts & set(range(2, ENOUGH)):
        said.append("Of two seeds each is drawn, without an interval.")
    return " ".join([*said, origin(found)])


def origin(found: Iterable[Result]) -> str:
    """Commit, hardware and precision of results in one sentence; several of each where they differ."""
    made = [result.origin for result in found]
    commits = _listed(_short(one.commit or "") for one in made)
    machines = _listed(_machine(one.hardware) for one in made)
    precisions = _listed(one.precision for one in made)
    return f"Commit {commits}; {machines}; {precisions}."


def _short(commit: str) -> str:
    """Seven digits, and whether there were changes that no commit holds."""
    digits, plus, changes = commit.partition("+")
    return f"{digits[:7]}{plus}{changes}" if digits else "unknown"


def _machine(hardware: Hardware) -> str:
    processor, device = hardware.processor, hardware.device
    return f"{processor}, on the CPU" if device == "cpu" else f"{device} ({processor})"


def _listed(values: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(values))
    more = len(distinct) - _SHOWN
    return printable(" / ".join(distinct[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
