"""Progress of a run: a live line in a terminal or notebook, plain lines elsewhere."""

from __future__ import annotations

import html
import os
import sys
import time
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

PIPE = "PLASTIBENCH_PROGRESS_PIPE"  # environment variable: stderr is a pipe to a process that shows the progress
_PIPE_INTERVAL = 0.5  # seconds between lines to such a pipe
_PLAIN_INTERVAL = 30.0  # seconds between lines if stderr is not a terminal; the end of a task is always printed


class Progress:
    """Shows position, latest result, rate and remaining time of one run on stderr."""

    def __init__(
        self,
        name: str,
        length: int,
        quiet: bool = False,
        unit: str = "samples",
        runs_after: int = 0,
        run: str = "",
    ) -> None:
        """Start the display.

        Args:
            name: Name of the run.
            length: Total number of updates or steps of the run.
            quiet: Print nothing.
            unit: Unit of the rate.
            runs_after: Number of runs that follow. They are expected to take as long as this one, and the remaining
                time includes them.
            run: Id of the run, for the process that reads the lines.
        """
        self._name, self._length, self._quiet, self._unit = name, length, quiet, unit
        self._runs_after = runs_after
        self._start = self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and progress at the first call of show()
        self._live = None if quiet else _live_line(run)

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
        left = ""
        if done > done_then:
            per_update = (now - since) / (done - done_then)
            left = f"{duration(per_update * (self._length - done + self._runs_after * self._length))} left"
            left += f" for {self._runs_after + 1} runs" if self._runs_after else ""
        rate = count / elapsed if elapsed else 0.0
        parts = [self._name, position, value, f"{rate:,.0f} {self._unit}/s", left]
        line = "  ".join(part for part in parts if part)
        if self._live is not None:
            self._live.update(line, done / max(1, self._length))
        else:
            self._last = now
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal."""
        if self._live is not None:
            self._live.stop()


class _TerminalLine:
    """Text at the bottom of a terminal: one line, or more if the terminal is narrow."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, line: str, fraction: float) -> None:
        self._live.update(Text(line), refresh=True)

    def stop(self) -> None:
        self._live.stop()


class _PipeLine:
    """Progress lines for the process at the other end of a pipe; see :func:`parse_pipe_line`."""

    def __init__(self, run: str) -> None:
        self._run, self._last = run, 0.0

    def update(self, line: str, fraction: float) -> None:
        if time.monotonic() - self._last > _PIPE_INTERVAL:
            self._last = time.monotonic()
            print(f"\r{fraction:.6f}\t{self._run}\t{line}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Leave the pipe open for errors."""


class PipeLine(NamedTuple):
    """A line about the progress of a run: the fraction that is done, the id of the run, and the text to show."""

    fraction: float
    run: str
    text: str


def parse_pipe_line(line: str) -> PipeLine | None:
    """Parse a line from the progress pipe; None if it is not about progress."""
    parts = line.removeprefix("\r").split("\t", 2)
    return PipeLine(float(parts[0]), parts[1], parts[2].strip()) if line.startswith("\r") and len(parts) == 3 else None


class _NotebookLine:
    """A progress bar and one line below a notebook's cell."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def update(self, line: str, fraction: float) -> None:
        bar = f'<progress value="{fraction:.3f}" max="1"></progress>'
        self._handle.update(self._html(f"{bar} <code>{html.escape(line)}</code>"))

    def stop(self) -> None:
        """Leave the last line in the notebook."""


def _live_line(run: str) -> _TerminalLine | _NotebookLine | _PipeLine | None:
    """What can be updated in place here; None if output is only appended."""
    if os.environ.get(PIPE):
        return _PipeLine(run)
    console = Console(stderr=True)
    if console.is_jupyter:
        return _NotebookLine()
    return _TerminalLine(console) if console.is_terminal else None


def duration(seconds: float) -> str:
    """Format a duration: ``40 s``, ``46 min`` or ``3 h 20 min``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
