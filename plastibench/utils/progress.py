"""Progress of a run: a live line in a terminal or notebook, plain lines elsewhere."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Sequence

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
        self._live = None if quiet else _live_line()

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
        if self._live is not None:
            self._live.update(fitting_line(parts, self._live.width), done / max(1, self._length))
        else:
            self._last = now
            print(fitting_line(parts, 0), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""
        if self._live is not None:
            self._live.stop()


def fitting_line(parts: Sequence[str], width: int) -> str:
    """Join name, position, value, rate and time left; what is longer than a width (0: any) is left out.

    The rate is left out first, then the value and the time left.
    """
    kept = dict(enumerate(parts))
    for index in (3, 2, 4):
        if len("  ".join(filter(None, kept.values()))) <= width or not width:
            break
        del kept[index]
    return "  ".join(filter(None, kept.values()))


class _TerminalLine:
    """One line at the bottom of a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    @property
    def width(self) -> int:
        return self._console.width

    def update(self, line: str, fraction: float) -> None:
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def stop(self) -> None:
        self._live.stop()


class _NotebookLine:
    """A progress bar and one line below a notebook's cell."""

    width = 0

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def update(self, line: str, fraction: float) -> None:
        bar = f'<progress value="{fraction:.3f}" max="1"></progress>'
        self._handle.update(self._html(f"{bar} <code>{html.escape(line)}</code>"))

    def stop(self) -> None:
        """Leave the last line in the notebook."""


def _live_line() -> _TerminalLine | _NotebookLine | None:
    """What can be updated in place here; None if output is only appended."""
    console = Console(stderr=True)
    if console.is_jupyter:
        return _NotebookLine()
    return _TerminalLine(console) if console.is_terminal else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
