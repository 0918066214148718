from __future__ import annotations

import csv
import io
import json

import pytest

from plastibench.config.errors import UserError
from plastibench.leaderboard import text as text_format
from plastibench.leaderboard.standings import standings
from tests.leaderboard.made import acting, result

FOUND = [
    result(name, seed, final + 0.01 * seed, drop=drop)
    for name, final, drop in (("none", 0.5, 0.0), ("reset", 0.7, 0.3), ("rnr", 0.6, 0.05))
    for seed in range(3)
]
RL = [acting(name, seed, final + seed) for name, final in (("none", 100.0), ("reset", 50.0)) for seed in range(2)]


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:2] == "| "]


def test_formats_contain_the_same_values() -> None:
    shown = standings(FOUND + RL)
    data = json.loads(text_format.as_json(shown))
    assert isinstance(data, list) and {row["scope"] for row in data} == {"setting", "all settings"}
    reset = data[0]
    assert (reset["env"], reset["intervention"], reset["rank"]) == (
        "cl-digits epochs=2 noise=0.5,0.1,0.0",
        "reset",
        1,
    )
    assert reset["final"]["value"] == pytest.approx(0.71) and reset["seeds"] == [0, 1, 2]

    lines = list(csv.DictReader(io.StringIO(text_format.as_csv(shown))))
    assert len(lines) == len(data)
    for line, row in zip(lines, data, strict=True):
        assert line["intervention"] == row["intervention"]
        for key in ("final", "iqm", "gain"):
            value = row[key] or {"value": None, "low": None, "high": None}
            for column, part in ((key, "value"), (f"{key}-low", "low"), (f"{key}-high", "high")):
                assert line[column] == ("" if value[part] is None else repr(value[part]))

    markdown, text = text_format.markdown(shown), text_format.table(shown)
    header, _, first, *_ = rows_of(markdown)
    cell = dict(zip(header, first, strict=True))
    assert cell["intervention"] == "reset" and cell["rank"] == "1" and cell["seeds"] == "3"
    half = (reset["final"]["high"] - reset["final"]["low"]) / 2
    assert cell["final %"] == f"71.0 ± {100 * half:.1f}"
    assert cell["gain %"].startswith("+20.0 ± 0.0") and cell["drop %"] == "30.0 ± 0.0"
    assert cell["P(> none)"] == "1.00 [0.44, 1.00]"
    assert cell["final %"] in text and "rl-cartpole, dqn-mlp" in text and "all settings" in text


def test_each_kind_of_table_has_a_legend_of_its_printed_headings() -> None:
    paragraphs = text_format.table(standings(FOUND + RL)).split("\n\n")
    *_, streams, environments, overall, _ = (" ".join(paragraph.split()) for paragraph in paragraphs)
    assert streams.startswith("task streams: rank: ") and "; final %: " in streams and "AUC %: " in streams
    assert environments.startswith("RL environments: rank: ") and "final: " in environments
    assert "final %" not in environments and "AUC" not in environments
    assert overall.startswith("all settings: rank: ") and "settings: " in overall and "gain %: " in overall


def test_a_narrow_terminal_hides_columns() -> None:
    shown = standings(FOUND)
    wide, narrow = text_format.table(shown), text_format.table(shown, 80)
    assert "AUC" in wide and "more columns in a wider terminal" not in wide
    assert max(map(len, narrow.splitlines())) <= 80
    assert "final %" in narrow and "drop %" in narrow and "AUC" not in narrow
    assert "more columns in a wider terminal, or with --format csv" in " ".join(narrow.split())


def test_returns_are_not_percentages() -> None:
    table = text_format.table(standings(RL))
    assert "67.00 ± 4.24" in table and "final %" not in table and "AUC" not in table


def test_notes_list_methods_without_rank() -> None:
    more = [result("fire", 0, 0.9), result("reset", 0, env_options={"epochs": 9})]
    text = text_format.table(standings(FOUND + more))
    assert "not ranked, one seed: fire" in text
    assert "which differ in env.epochs" in text
    assert "'none' was not run in this setting" in text


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("final", ["reset", "rnr", "none"]),
        ("drop", ["none", "rnr", "reset"]),
        ("intervention", ["none", "reset", "rnr"]),
        ("gain", ["reset", "rnr", "none"]),
    ],
)
def test_rows_are_sorted_best_first(key: str, order: list[str]) -> None:
    ((_, made),) = standings(FOUND, sorted_by=key).tables
    assert [row["intervention"] for row in made] == order


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["intervention=r*"], ["reset", "rnr"]),
        (["intervention=rnr,none"], ["rnr", "none"]),
        (["intervention!=none"], ["reset", "rnr"]),
        (["final>=60%"], ["reset", "rnr"]),
        (["final >= 0.65", "seeds=3"], ["reset"]),
        (["env=cl-*", "drop<1%"], ["none"]),
        (["env=rl-*"], []),
        (["gain>0"], ["reset", "rnr"]),
    ],
)
def test_filters_do_not_change_ranks(conditions: list[str], kept: list[str]) -> None:
    ranks = {row["intervention"]: row["rank"] for row in standings(FOUND).tables[0][1]}
    made = [row for _, rows in standings(FOUND, filters=conditions).tables for row in rows]
    assert [row["intervention"] for row in made] == kept
    assert all(row["rank"] == ranks[row["intervention"]] for row in made)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("final", "expected COLUMN=PATTERN"),
        ("finale>3", "no column 'finale'; did you mean 'final'"),
        ("final>much", "'much' is not a number"),
        ("env>3", "env is text; use env=PATTERN"),
    ],
)
def test_an_invalid_filter_is_reported(condition: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        standings(FOUND, filters=[condition])


def test_an_unknown_column_is_reported() -> None:
    with pytest.raises(UserError, match="--sort fnal: no column 'fnal'; did you mean 'final'"):
        standings(FOUND, sorted_by="fnal")


def test_pipes_and_line_breaks_do_not_break_markdown_tables() -> None:
    odd = result("reset", 0, 0.9)
    odd.group, odd.changed.intervention = "odd", {"weights": "a|b\nc"}
    text = text_format.markdown(standings([*FOUND, odd]))
    assert "`reset weights=a\\|b c`" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
