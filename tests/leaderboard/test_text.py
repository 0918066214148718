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
RL = [
    acting(name, seed, final + seed)
    for name, final in (("none", 100.0), ("reset", 50.0), ("rnr", 20.0))
    for seed in range(2)
]


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
    assert "recovered in: epochs" in streams and "return" not in streams and "lowest" not in streams
    assert environments.startswith("RL environments: final: mean of the last three returns")
    assert "rank: " not in environments, "explained above"
    assert "final %" not in environments and "AUC" not in environments
    assert overall.startswith("all settings: rank: ") and "settings: " in overall and "gain %: " in overall


LONG = [
    result(
        "rnr", seed, 0.65, intervention_options={"quantile": 0.25, "criterion": "regrama"}, every=5, roles=("network",)
    )
    for seed in range(3)
]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_terminal_with_the_most_important_columns_first(width: int) -> None:
    text = text_format.table(standings(FOUND + LONG + RL), width)
    assert max(map(len, text.splitlines())) <= width
    headings = [line.split() for line in text.splitlines() if line.startswith("intervention")]
    assert all(words[1:3] == ["rank", "final"] for words in headings[:2])
    assert ("drop" in headings[0]) == (width >= 80) and ("recovered" in headings[0]) == (width == 120)
    legend = " ".join(text.split())
    assert ("drop %: " in legend) == (width >= 80) and "AUC %: " not in legend
    assert "more columns with --wide" in legend
    for word in ("quantile=0.25", "criterion=regrama", "every=5", "roles=network"):
        assert word in text  # names are wrapped, not cut


def test_without_a_width_all_columns_are_shown() -> None:
    text = text_format.table(standings(FOUND + LONG))
    assert "AUC %" in text.splitlines()[2] and "average %" in text.splitlines()[2] and "--wide" not in text
    assert "rnr criterion=regrama quantile=0.25 every=5 roles=network" in text


def test_recovery_is_a_phrase() -> None:
    found = [result("reset", seed, 0.5, drop=0.3) for seed in range(2)]
    for run in found:
        run.summary.mean_recovery_epochs, run.summary.unrecovered_fraction = 9.84, 0.53
    (line,) = (line for line in text_format.table(standings(found)).splitlines() if line.startswith("reset"))
    assert "9.8 epochs, 53 % never" in line


def test_columns_without_values_are_left_out() -> None:
    alone = text_format.table(standings([result("reset", seed, 0.5) for seed in range(2)]))
    for heading in ("gain", "P(> none)", "memory ×"):
        assert heading not in alone.replace("the gain column is empty", "")
    assert "±" not in text_format.table(standings([result("reset")]))


def test_returns_are_not_percentages() -> None:
    table = text_format.table(standings(RL))
    assert "67.00 ± 4.24" in table and "final %" not in table and "AUC" not in table


def test_notes_list_methods_without_rank() -> None:
    more = [result("fire", 0, 0.9), result("reset", 0, env_options={"epochs": 9})]
    text = text_format.table(standings(FOUND + more))
    assert "not ranked, one seed: fire" in text
    assert "which differ in env.epochs" in text
    assert "'none' was not run in this setting" in text


def test_rows_are_sorted_by_rank_then_by_the_final_value() -> None:
    single = [result("fire", 0, 0.99)]  # not ranked
    ((_, made),) = standings(FOUND + single + [result("redo", seed, 0.5) for seed in range(3)]).tables
    assert [row["intervention"] for row in made] == ["reset", "rnr", "none", "redo", "fire"]
    assert [row["rank"] for row in made] == [1, 2, 3, 3, None]


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
