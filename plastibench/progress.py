"""Progress while a run is under way: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_INTERVAL = 30.0  # seconds between lines where output is not a terminal, besides one per task


class Progress:
    """Shows task, epoch, accuracy, rate and time left of one run. Writes to stderr."""

    def __init__(self, name: str, updates: int, quiet: bool = False) -> None:
        """Begin.

        Args:
            name: What is running.
            updates: Updates that the whole run takes.
            quiet: Show nothing.
        """
        self._name, self._updates, self._quiet = name, updates, quiet
        self._start = self._last = time.monotonic()
        self._done_before: int | None = None
        console = Console(stderr=True)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal and not quiet else None
        )
        if self._live is not None:
            self._live.start()

    def show(self, done: int, samples: int, place: str, accuracy: float | None, *, milestone: bool = False) -> None:
        """Report where the run is.

        Args:
            done: Updates done.
            samples: Samples learned since the last call to the constructor.
            place: ``task 3/10, epoch 20/100``.
            accuracy: Latest accuracy, between 0 and 1.
            milestone: The end of a task; always shown.
        """
        now = time.monotonic()
        if self._done_before is None:
            self._done_before = done
        if self._quiet or not (milestone or self._live is not None or now - self._last > _PLAIN_INTERVAL):
            return
        elapsed = now - self._start
        learned = done - self._done_before
        left = elapsed / learned * (self._updates - done) if learned else 0.0
        percent = "" if accuracy is None else f"  accuracy {100 * accuracy:5.1f} %"
        rate = samples / elapsed if elapsed else 0.0
        line = f"{self._name}  {place}{percent}  {rate:,.0f} samples/s  {_clock(left)} left"
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
