"""The two errors a person meets: their input is wrong, or the run itself failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong. One line: what, where, what to do. Exit status 2."""


class RunError(Exception):
    """The run itself failed (a NaN loss, say). One line; what was written stays whole. Exit status 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'rnr'?`` for the closest known word, or an empty string where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
