"""The outcome of a training step that several trainers shared."""

from __future__ import annotations

from typing import NamedTuple


class Update(NamedTuple):
    """A step of a trainer.

    Attributes:
        together: Number of trainers that were updated together.
        cpu_seconds: The trainer's share of the CPU time.
        error: The error that ended the trainer's own part of the step; other trainers are unaffected.
    """

    together: int
    cpu_seconds: float
    error: Exception | None = None
