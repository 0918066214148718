"""Tables for the terminal and for Markdown."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from plastibench.utils.wording import plural

_GAP = "  "
_NARROWEST = 40  # characters; a smaller terminal is treated as this wide
_FIRST = 0.3  # maximum fraction of the width that the first column takes from the others


def terminal_width(wide: bool = False) -> int:
    """Width for tables: ``$COLUMNS`` if set, otherwise that of the terminal; 0 (unlimited) if output is piped."""
    if wide or not (os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty()):
        return 0
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Format a table for the terminal: the first column is aligned left, the others right.

    Args:
        header: Headings of the columns.
        rows: Cells of each row.
        width: If the table is wider than this, the first column is wrapped; 0: any width.
    """
    lines = [header, *rows]
    widths = _widths(lines)
    if width:
        widths[0] = max(
            min(widths[0], _first_width(header, width)), width - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)
        )
        widths[0] = min(widths[0], max(len(line[0]) for line in lines))

    def join(line: Sequence[str]) -> str:
        first, *more = _wrapped(line[0], widths[0])
        others = [cell.rjust(size) for cell, size in zip(line[1:], widths[1:], strict=True)]
        return "\n".join([_GAP.join([first.ljust(widths[0]), *others]).rstrip(), *more])

    return "\n".join([join(header), _GAP.join("-" * size for size in widths), *map(join, rows)])


def fitting_columns(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Number of columns from the left that fit into a width if :func:`text_table` wraps the first column.

    Args:
        header: Headings of the columns, the most important first.
        rows: Cells of each row.
        width: Available characters; 0: all columns fit.
    """
    first, *others = _widths([header, *rows])
    left = width - min(first, _first_width(header, width))
    count = 1
    for size in others:
        left -= size + len(_GAP)
        if width and left < 0:
            break
        count += 1
    return count


def hidden_columns(count: int) -> list[str]:
    """A note on columns that do not fit, as a list; empty if all fit."""
    return [f"{plural(count, 'more column')} with --wide, in a wider terminal or a pipe"] if count else []


def columns_with_summary(rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Format rows of left-aligned cells; the last cell is text that is wrapped to the width."""
    *widths, _ = _widths(rows)
    lines = []
    for *cells, summary in rows:
        start = _GAP.join(["", *(cell.ljust(size) for cell, size in zip(cells, widths, strict=True)), ""])
        room = width - len(start)
        if width and room < _NARROWEST // 2:  # no room beside the other cells
            lines += [
                start.rstrip(),
                *textwrap.wrap(summary, width, initial_indent=_GAP * 3, subsequent_indent=_GAP * 3),
            ]
            continue
        parts = textwrap.wrap(summary, room, break_on_hyphens=False) if width else [summary]
        lines += [(start + (parts[0] if parts else "")).rstrip(), *(" " * len(start) + part for part in parts[1:])]
    return "\n".join(lines)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]


def _first_width(header: Sequence[str], width: int) -> int:
    """Width to which the first column may be wrapped in favour of the others."""
    return max(len(header[0]), int(_FIRST * width))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a cell; all but the first are indented."""
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=_GAP, break_on_hyphens=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown, aligned as in :func:`text_table`."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *escaped])


def printable(text: str) -> str:
    """Replace control and unprintable characters, and collapse white space to single spaces."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction as percent, without the sign; None becomes a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def format_recovery(time: float | None, never: float | None, unit: str, digits: int = 1) -> str:
    """Format a recovery time and the fraction of cases without recovery: ``9.8 epochs, 53 % never``."""
    if time is None:
        return "never" if never else "–"
    return f"{time:,.{digits}f} {unit}" + (f", {percent(never, 0)} % never" if never else "")
