"""Words in messages."""

from __future__ import annotations


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun: ``1 run``, ``2,000 runs``; ``many`` is the plural, if it is not ``one`` + "s"."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
