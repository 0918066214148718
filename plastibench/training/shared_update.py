"""What a step of training took, for a trainer that shared a part of it with others."""

from __future__ import annotations

from typing import NamedTuple


class Update(NamedTuple):
    """A step of a trainer.

    Attributes:
        together: How many trainers were updated together.
        cpu_seconds: The trainer's share of the CPU time.
        error: What ended the trainer's own part of the step; the other trainers are unaffected.
    """

    together: int
    cpu_seconds: float
    error: Exception | None = None
