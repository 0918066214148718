from __future__ import annotations

import pytest

from plastibench.utils.tables import (
    columns_with_summary,
    fitting_columns,
    format_recovery,
    markdown_table,
    percent,
    printable,
    terminal_width,
    text_table,
)

HEADER = ["method", "final", "drop"]
ROWS = [["rnr quantile=0.2 criterion=regrama", "71.0 ± 1.2", "3.0"], ["none", "5.0", "–"]]


def test_text_tables_align_the_first_column_left_and_the_others_right() -> None:
    lines = text_table(["name", "value"], [["a", "1"], ["long name", "100"]]).splitlines()
    assert lines == ["name       value", "---------  -----", "a              1", "long name    100"]


def test_a_narrow_table_wraps_the_first_column_and_keeps_its_words() -> None:
    assert text_table(HEADER, ROWS, 60) == text_table(HEADER, ROWS)
    for width in range(44, 52):
        lines = text_table(HEADER, ROWS, width).splitlines()
        assert max(map(len, lines)) <= width
        rule = lines[1].partition(" ")[0]
        first = " ".join(line[: len(rule)].strip() for line in lines[2:-1])
        assert first.split() == ROWS[0][0].split() and lines[2].endswith("71.0 ± 1.2   3.0")


def test_columns_that_fit_are_counted_from_the_left() -> None:
    assert fitting_columns(HEADER, ROWS, 0) == fitting_columns(HEADER, ROWS, 100) == 3
    for width in range(12, 60):
        count = fitting_columns(HEADER, ROWS, width)
        widest = max(map(len, text_table(HEADER[:count], [row[:count] for row in ROWS], width).splitlines()))
        assert widest <= width
        if count < 3:
            more = text_table(HEADER[: count + 1], [row[: count + 1] for row in ROWS], width).splitlines()
            assert max(map(len, more)) > width


def test_summaries_are_wrapped_beside_or_below_their_cells() -> None:
    rows = [["rnr", "a", "resets one half and refits the rest"], ["none", "bb", "nothing"]]
    assert columns_with_summary(rows).splitlines() == [
        "  rnr   a   resets one half and refits the rest",
        "  none  bb  nothing",
    ]
    text = columns_with_summary(rows, 34)
    assert text.splitlines() == [
        "  rnr   a   resets one half and",
        "            refits the rest",
        "  none  bb  nothing",
    ]
    long = columns_with_summary([["x" * 30, rows[0][2]]], 40).splitlines()
    assert max(map(len, long)) <= 40 and " ".join(" ".join(long[1:]).split()) == rows[0][2]


def test_the_width_is_that_of_the_terminal_or_unlimited_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert terminal_width() == 0
    monkeypatch.setenv("COLUMNS", "97")
    assert (terminal_width(), terminal_width(wide=True)) == (97, 0)
    monkeypatch.setenv("COLUMNS", "3")
    assert terminal_width() == 40


def test_markdown_tables_escape_bars() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]).splitlines() == ["| a | b |", "| :-- | --: |", "| x\\|y | 1 |"]


def test_unprintable_characters_are_replaced() -> None:
    assert printable("a\x1b[0m\n  b") == "a\ufffd[0m b"


def test_numbers() -> None:
    assert percent(0.1234) == "12.3" and percent(None) == "–"
    assert format_recovery(9.84, 0.53, "epochs") == "9.8 epochs, 53 % never"
    assert format_recovery(1234.5, 0.0, "steps", 0) == "1,234 steps"
    assert format_recovery(None, 1.0, "epochs") == "never" and format_recovery(None, None, "epochs") == "–"
