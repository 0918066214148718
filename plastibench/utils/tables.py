"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def draw(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        return "  ".join(
            [first, *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()

    return "\n".join([draw(header), "  ".join("-" * width for width in widths), *map(draw, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *escaped])


def printable(text: str) -> str:
    """The text without what would steer a terminal or cannot be written; white space becomes single spaces."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def percent(value: float | None, digits: int = 1) -> str:
    """A share as points of a hundred, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def mean_std(values: Sequence[float | None], scale: float = 100.0, digits: int = 1) -> str:
    """``mean ± std`` of the values that are there (sample standard deviation), or a dash."""
    present = [scale * value for value in values if value is not None]
    if not present:
        return "–"
    mean = sum(present) / len(present)
    if len(present) == 1:
        return f"{mean:.{digits}f}"
    std = (sum((value - mean) ** 2 for value in present) / (len(present) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def back_after(time: float | None, never: float | None, digits: int) -> str:
    """How long something took to come back, and in brackets the share of times that it never did."""
    if time is None:
        return "never" if never else "–"
    return f"{time:,.{digits}f}" + (f" ({percent(never, 0)} %)" if never else "")
