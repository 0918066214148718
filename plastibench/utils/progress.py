"""Progress of a run: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_INTERVAL = 30.0  # seconds between lines if stderr is not a terminal; the end of a task is always printed


class Progress:
    """Shows position, latest result, rate and remaining time of one run on stderr."""

    def __init__(self, name: str, length: int, quiet: bool = False, unit: str = "samples") -> None:
        """Start the display.

        Args:
            name: Name of the run.
            length: Total number of updates or steps of the run.
            quiet: Print nothing.
            unit: Unit of the rate.
        """
        self._name, self._length, self._quiet, self._unit = name, length, quiet, unit
        self._start = self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and progress at the first call of show()
        console = Console(stderr=True)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal and not quiet else None
        )
        if self._live is not None:
            self._live.start()

    def show(self, done: int, count: int, position: str, value: str, *, milestone: bool = False) -> None:
        """Update the display.

        Args:
            done: Updates or steps that are done.
            count: Units that were done since this object was created.
            position: ``task 3/10, epoch 20/100``.
            value: The latest result, ``accuracy  87.1 %``; may be empty.
            milestone: Whether a task has ended; always shown.
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
        parts = [self._name, position, value, f"{rate:,.0f} {self._unit}/s", left]
        line = "  ".join(part for part in parts if part)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self._last = now
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
