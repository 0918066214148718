"""Seeded mutations of files, JSON content and text."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("nan")),
    *("", "x", "none", "../../x", "/", "a" * 300, "\0", "\ud800", "ä\u202e", "<script>", "1e3", "{}", "%s"),
    *([], {}, [[]], [1, "a"], {"a": {"b": []}}),
)


def harmed(content: bytes, dice: Random) -> tuple[bytes, str]:
    """Change bytes in one way; return them and what was done."""
    data = bytearray(content)
    if not data:
        return b"\0", "bytes added"
    start = dice.randrange(len(data))
    kind = dice.choice(["bit flipped"] * 6 + ["truncated", "block zeroed", "block moved", "bytes added", "emptied"])
    if kind == "bit flipped":
        data[start] ^= 1 << dice.randrange(8)
    elif kind == "truncated":
        del data[start:]
    elif kind == "block zeroed":
        end = min(len(data), start + dice.choice([1, 16, 512]))
        data[start:end] = bytes(end - start)
    elif kind == "block moved":
        block = data[start : start + 64]
        del data[start : start + 64]
        at = dice.randrange(len(data) + 1)
        data[at:at] = block
    elif kind == "bytes added":
        data[start:start] = dice.randbytes(dice.choice([1, 8, 100]))
    else:
        data.clear()
    return bytes(data), kind


def mutated(content: Any, dice: Random) -> Any:
    """A copy of JSON content with one to three values replaced, removed or repeated."""
    made = copy.deepcopy(content)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        parent, key = _place(made, dice)
        if parent is None:
            return copy.deepcopy(dice.choice(HOSTILE))
        action = dice.choice(["replace", "replace", "replace", "remove", "repeat", "scale"])
        value = parent[key]
        if action == "remove":
            del parent[key]
        elif action == "repeat" and isinstance(value, list):
            parent[key] = value * 2
        elif action == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
            parent[key] = value * dice.choice([-1, 2, 1e3, 1e20]) if abs(value) < 1e100 else 0
        else:
            parent[key] = copy.deepcopy(dice.choice(HOSTILE))
    return made


def mutated_text(text: str, dice: Random) -> str:
    """Text with one to three characters, words or lines changed."""
    for _ in range(dice.choice([1, 1, 2, 3])):
        start = dice.randrange(len(text) + 1)
        stop = min(len(text), start + dice.choice([0, 1, 1, 5, 40]))
        inserted = dice.choice(["", "=", "[", "]", '"', "\n", "'''", "0", "-", "1e999", "nan", "é", "\x07", ".", "#"])
        text = text[:start] + inserted + text[stop:]
    return text


def _place(content: Any, dice: Random) -> tuple[Any, Any]:
    """A random place in JSON content: the list or dict, and the index or key; (None, None) for the content itself."""
    parent, key, value = None, None, content
    while isinstance(value, list | dict) and value and (parent is None or dice.random() < 0.7):
        parent, key = value, dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = parent[key]
    return parent, key
