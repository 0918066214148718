from __future__ import annotations

import pytest

from plastibench.config.errors import UserError, all_of, raise_all


def refuse(message: str) -> None:
    raise UserError(message)


def test_all_mistakes_are_reported_once_even_if_some_are_joined_already() -> None:
    joined = lambda: raise_all(["no update", "never acts"])  # noqa: E731
    with pytest.raises(UserError) as caught:
        all_of([lambda: refuse("no update"), joined, lambda: refuse("too long")])
    assert str(caught.value) == "no update; also: never acts; also: too long"
