"""Attacks that are repeated with seeded variations: a few times in the normal suite, for a time in the long one."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Iterator

UNITS = {"s": 1, "m": 60, "h": 3600}
PROPERTY = "attack"  # under which a report carries the counts


class Attack:
    """One attack: its trials and what came of them.

    Attributes:
        seconds: How long the long form repeats it; None for the short form.
        outcomes: Number of trials by outcome.
    """

    def __init__(self, name: str, seconds: float | None) -> None:
        self.name, self.seconds = name, seconds
        self.outcomes: Counter[str] = Counter()

    def trials(self, short: int) -> Iterator[random.Random]:
        """Yield the random numbers of each trial, always the same: of ``short`` trials, or until the time is up."""
        start = time.monotonic()
        for number in itertools.count():
            if number >= short and (self.seconds is None or time.monotonic() - start > self.seconds):
                return
            yield random.Random(f"{self.name} {number}")

    def note(self, outcome: str) -> None:
        """Count the outcome of a trial."""
        self.outcomes[outcome] += 1

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())
        return f"{self.name}: {sum(self.outcomes.values()):,} ({counts})"


def seconds_of(budget: str) -> float:
    """Parse a time such as ``90s``, ``10m`` or ``1h``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not found:
        raise ValueError(f"--budget {budget}: expected a time such as 90s, 10m or 1h")
    return float(found[1]) * UNITS[found[2]]
