"""User-facing errors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

_ALSO = "; also: "


class UserError(Exception):
    """The user's input is wrong. The message is one line: what is wrong, where, what to do. Exit status 2."""


class DivergedError(UserError):
    """The values of a network are not finite, or too large for what a method computes."""


class RunError(Exception):
    """The run failed, for example with a NaN loss. Files that it has written stay valid. Exit status 1."""


def all_of(checks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run all checks and return their results, so that a user sees everything that is wrong at once.

    Raises:
        UserError: At least one check failed; the message contains those of all checks that failed, each once.
    """
    results, failed = [], []
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    raise_all(map(str, failed))
    return results


def raise_all(messages: Iterable[str]) -> None:
    """Raise one error with all messages, each once; do nothing if there is none.

    Raises:
        UserError: There is a message.
    """
    single = (part for message in messages for part in message.split(_ALSO))  # a message may be a joined one
    if found := list(dict.fromkeys(single)):
        raise UserError(_ALSO.join(found))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'rnr'?`` for the closest known word, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
