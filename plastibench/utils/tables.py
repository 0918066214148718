"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table for the terminal: the first column is aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def join(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        return "  ".join(
            [first, *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()

    return "\n".join([join(header), "  ".join("-" * width for width in widths), *map(join, rows)])


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


def format_recovery(time: float | None, never: float | None, digits: int) -> str:
    """Format a recovery time, with the percentage of cases without recovery in parentheses."""
    if time is None:
        return "never" if never else "–"
    return f"{time:,.{digits}f}" + (f" ({percent(never, 0)} %)" if never else "")
