"""Progress of many runs: a live table in a terminal, one line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from plastibench.sweeps.jobs import Job
from plastibench.utils.progress import duration

_LINE_SECONDS = 60.0  # seconds between lines if the output is not a terminal
_ORDER = ("running", "failed", "stopped", "waiting", "complete")


class LiveTable:
    """Shows the states of jobs on stderr."""

    def __init__(self, jobs: Sequence[Job], slots: int, quiet: bool = False) -> None:
        """Start the display.

        Args:
            jobs: The jobs; their states are read whenever :meth:`update` is called.
            slots: Number of jobs that run at a time.
            quiet: Show nothing.
        """
        self._jobs, self._slots, self._quiet = jobs, slots, quiet
        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not quiet else None
        if self._live is not None:
            self._live.start()

    def update(self) -> None:
        """Show the current states."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif not self._quiet and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self._summary(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show the final states and end the display."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        elif not self._quiet:
            print(self._summary(), file=sys.stderr, flush=True)

    def _summary(self) -> str:
        return summary(self._jobs, self._slots)

    def _table(self) -> Group:
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        console = Console(stderr=True)
        widest = max((len(job.name) for job in self._jobs), default=0)
        for least in (len("complete"), min(widest, console.width // 2), None):  # the messages are cut first
            table.add_column(no_wrap=True, overflow="ellipsis", min_width=least)
        rows = sorted(self._jobs, key=lambda job: _ORDER.index(job.state))
        room = max(4, console.height - 4)
        for job in rows[:room]:
            table.add_row(job.state, job.name, job.message if job.state in ("running", "failed") else "")
        if len(rows) > room:
            table.add_row("", f"and {len(rows) - room} more", "")
        return Group(Text(self._summary(), style="italic"), table)


def summary(jobs: Sequence[Job], slots: int = 1) -> str:
    """``12 of 40 complete, 2 running, 1 failed, about 31 min left``."""
    count = {state: sum(job.state == state for job in jobs) for state in ("complete", "running", "failed")}
    parts = [f"{count['complete']} of {len(jobs)} complete"]
    parts += [f"{count[state]} {state}" for state in ("running", "failed") if count[state]]
    if seconds := time_left(jobs, slots, time.monotonic()):
        parts.append(f"about {duration(seconds)} left")
    return ", ".join(parts)


def time_left(jobs: Sequence[Job], slots: int, now: float) -> int | None:
    """Estimate the seconds until the last job ends.

    The duration of a running job is extrapolated from its progress. A waiting job is expected to take the mean duration
    of the jobs that are complete or have made progress.

    Args:
        jobs: All jobs.
        slots: Number of jobs that run at a time.
        now: Time by the monotonic clock.

    Returns:
        Seconds, or None if no job has completed or made progress yet.
    """
    expected = {id(job): (now - job.started) / job.progress for job in jobs if job.state == "running" and job.progress}
    durations = [job.seconds for job in jobs if job.seconds is not None] or list(expected.values())
    if not durations:
        return None
    mean = sum(durations) / len(durations)
    running = [job for job in jobs if job.state == "running"]
    ends = [max(0.0, expected.get(id(job), mean) - (now - job.started)) for job in running]
    ends += [0.0] * (slots - len(ends))
    for _ in range(sum(job.state == "waiting" for job in jobs)):
        ends[ends.index(min(ends))] += mean  # the next job starts in the slot that is free first
    return round(max(ends))
