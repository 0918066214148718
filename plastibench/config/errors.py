"""User-facing errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The message is one line: what is wrong, where, what to do. Exit status 2."""


class RunError(Exception):
    """The run failed, for example with a NaN loss. Files that it has written stay valid. Exit status 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'rnr'?`` for the closest known word, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
