"""Progress while a run is under way: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_INTERVAL = 30.0  # seconds between lines where output is not a terminal, besides one per task


class Progress:
    """Shows place, result, rate and time left of one run. Writes to stderr."""

    def __init__(self, name: str, length: int, quiet: bool = False, unit: str = "samples") -> None:
        """Begin.

        Args:
            name: What is running.
            length: Updates, or steps, that the whole run takes.
            quiet: Show nothing.
            unit: What the rate counts.
        """
        self._name, self._length, self._quiet, self._unit = name, length, quiet, unit
        self._start = self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when it was first told how much is done
        console = Console(stderr=True)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal and not quiet else None
        )
        if self._live is not None:
            self._live.start()

    def show(self, done: int, count: int, place: str, figure: str, *, milestone: bool = False) -> None:
        """Report where the run is.

        Args:
            done: How much of the length is done.
            count: How many of the unit were done since this object was made.
            place: ``task 3/10, epoch 20/100``.
            figure: The latest result, ``accuracy  87.1 %``; may be empty.
            milestone: The end of a task; always shown.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if self._quiet or not (milestone or self._live is not None or now - self._last > _PLAIN_INTERVAL):
            return
        elapsed = now - self._start
        since, done_then = self._first
        left = f"{_clock((now - since) / (done - done_then) * (self._length - done))} left" if done > done_then else ""
        rate = count / elapsed if elapsed else 0.0
        parts = [self._name, place, figure, f"{rate:,.0f} {self._unit}/s", left]
        line = "  ".join(part for part in parts if part)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self._last = now
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
