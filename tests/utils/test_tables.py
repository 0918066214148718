from __future__ import annotations

from plastibench.utils.tables import format_recovery, markdown_table, percent, printable, text_table


def test_text_tables_align_the_first_column_left_and_the_others_right() -> None:
    lines = text_table(["name", "value"], [["a", "1"], ["long name", "100"]]).splitlines()
    assert lines == ["name       value", "---------  -----", "a              1", "long name    100"]


def test_markdown_tables_escape_bars() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]).splitlines() == ["| a | b |", "| :-- | --: |", "| x\\|y | 1 |"]


def test_unprintable_characters_are_replaced() -> None:
    assert printable("a\x1b[0m\n  b") == "a\ufffd[0m b"


def test_numbers() -> None:
    assert percent(0.1234) == "12.3" and percent(None) == "–"
    assert format_recovery(1234.5, 0.25, 1) == "1,234.5 (25 %)"
    assert format_recovery(None, 1.0, 1) == "never" and format_recovery(None, None, 1) == "–"
