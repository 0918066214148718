from __future__ import annotations

import pytest

from plastibench.leaderboard import comparison
from plastibench.leaderboard.run_tables import _evenly_spaced
from plastibench.results.confidence import PLUS_MINUS
from tests.leaderboard.made import acting, result


def test_accuracy_table_has_a_row_per_method_and_a_legend() -> None:
    found = [result(name, seed, 0.5 + 0.1 * seed, drop=0.25) for name in ("none", "reset") for seed in range(2)]
    found += [result("rnr", seed, 0.9, drop=0.1) for seed in range(2)]
    _, _, best, none, reset, *_ = comparison(found).splitlines()
    assert "55.0 ± 63.5" in none and none.startswith("none") and reset.startswith("reset") and best.startswith("rnr")
    assert PLUS_MINUS in " ".join(comparison(found).split())


def test_return_table_shows_a_single_seed_without_interval() -> None:
    text = comparison([acting("reset")])
    row = text.splitlines()[2]
    assert row.startswith("reset") and "±" not in text
    assert "66.67" in row


def test_up_to_ten_items_are_evenly_spaced() -> None:
    assert _evenly_spaced(1) == [0] and _evenly_spaced(4) == [0, 1, 2, 3]
    assert _evenly_spaced(100) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    long = {"intervention_options": {"quantile": 0.25, "criterion": "regrama"}, "every": 5}
    found = [result(name, seed, 0.5, drop=0.25) for name in ("none", "reset") for seed in range(2)]
    found += [result("rnr", seed, 0.6, drop=0.1, **long) for seed in range(2)]
    for run in found:
        run.tasks = [run.tasks[min(task, 2)].model_copy(update={"task": task}) for task in range(12)]
        run.summary.mean_recovery_epochs, run.summary.unrecovered_fraction = 9.84, 0.53
    text = comparison(found, width)
    assert max(map(len, text.splitlines())) <= width
    first = text.splitlines()[0].split()
    assert "final" in first and ("recovered" in first) == (width >= 80) and ("cost" in first) == (width > 120)
    legend = " ".join(text.split("\n\n")[-1].split())
    assert ("recovered in: " in legend) == (width >= 80) and "cost %:" not in legend and "with --wide" in legend
    if width >= 80:
        assert "9.8 epochs, 53 % never" in text
    everything = comparison(found)
    assert "cost %" in everything and "revived %" in everything and "--wide" not in everything


def test_returns_fit_the_terminal() -> None:
    text = comparison([acting(name, seed) for name in ("none", "reset") for seed in range(3)], 80)
    assert max(map(len, text.splitlines())) <= 80 and "lowest" not in text.splitlines()[0]
