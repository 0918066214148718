from __future__ import annotations

from plastibench.leaderboard import comparison
from plastibench.leaderboard.run_tables import _evenly_spaced
from plastibench.results.confidence import PLUS_MINUS
from tests.leaderboard.made import acting, result


def test_accuracy_table_has_a_row_per_method_and_a_legend() -> None:
    found = [result(name, seed, 0.5 + 0.1 * seed, drop=0.25) for name in ("none", "reset") for seed in range(2)]
    _, _, none, reset, *_ = comparison(found).splitlines()
    assert "55.0 ± 63.5" in none and none.startswith("none") and reset.startswith("reset")
    assert PLUS_MINUS in " ".join(comparison(found).split())


def test_return_table_shows_a_single_seed_without_interval() -> None:
    text = comparison([acting("reset")])
    row = text.splitlines()[2]
    assert row.startswith("reset") and "±" not in row and "±" in text
    assert "66.67" in row


def test_up_to_ten_items_are_evenly_spaced() -> None:
    assert _evenly_spaced(1) == [0] and _evenly_spaced(4) == [0, 1, 2, 3]
    assert _evenly_spaced(100) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
