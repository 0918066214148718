from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from plastibench.utils.wording import plural

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for folder in ("plastibench", "envs", "agents") for file in sorted((ROOT / folder).rglob("*.py"))]
NOUNS = (
    *("run", "task", "seed", "update", "step", "setting", "method", "column", "thread", "core", "module", "block"),
    *("layer", "image", "sample", "epoch", "episode", "parameter", "buffer", "tensor", "record", "result", "network"),
    *("output", "value", "group", "unit", "file", "transition", "row", "classe", "label", "measurement", "scale"),
)
COUNTED = re.compile(rf" (more )?({'|'.join(NOUNS)})s\b")
NEVER_ONE = {
    "split",
    "missing",
    "limit",
    "MAX_STEPS",
    "most",
    "count",
    "self._runs_after + 1",
    "_FEWEST_ROWS",
}


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (1, ("run",), "1 run"),
        (0, ("run",), "0 runs"),
        (2000, ("run",), "2,000 runs"),
        (1, ("class is", "classes are"), "1 class is"),
        (3, ("class is", "classes are"), "3 classes are"),
    ],
)
def test_plural(count: int, words: tuple[str, ...], text: str) -> None:
    assert plural(count, *words) == text


def test_messages_use_it_for_every_count_that_can_be_one() -> None:
    """A placeholder for an integer before a noun in the plural, as in ``f"{count} runs"``, would print ``1 runs``."""
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for number, text in zip(node.values, node.values[1:], strict=False) if is_text(node) else ():
                is_count = isinstance(number, ast.FormattedValue) and not re.search(r"[fg%]'$", style(number))
                if is_count and isinstance(text, ast.Constant) and COUNTED.match(str(text.value)):
                    found.append((file.name, number.lineno, ast.unparse(number.value)))
    assert [each for each in found if each[2] not in NEVER_ONE] == []


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr)


def style(number: ast.FormattedValue) -> str:
    return ast.unparse(number.format_spec) if number.format_spec else ""
