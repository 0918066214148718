from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from plastibench.results.confidence import (
    Interval,
    iqm,
    iqm_interval,
    mean_ci,
    mean_interval,
    paired_gain,
    paired_improvement,
    probability_of_improvement,
    ranks,
)

# Scores by setting, and the values of rliable 1.2.0 for them (arch 7.2.0, pandas 2.3.3, 50,000 resamples).
X = [
    [0.5, 0.509, 0.502, 0.621, 0.331, 0.232],
    [0.96, 0.702, 0.776, 0.714, 0.808, 0.853],
    [0.345, 0.412, 0.498, 0.394, 0.02, 0.147],
    [0.522, 0.968, 0.771, 0.839, 0.442, 0.754],
]
Y = [
    [0.5, 0.49, 0.304, 0.493, 0.522],
    [0.763, 0.823, 0.638, 0.977, 0.813],
    [-0.203, -0.006, 0.512, 0.183, 0.055],
    [0.492, 0.504, 0.438, 0.578, 0.615],
]
RLIABLE = [(X, 0.5789166666666666, (0.51, 0.64033333)), (Y, 0.5144, (0.4573, 0.5422))]


@pytest.mark.parametrize(("strata", "value", "bounds"), RLIABLE)
def test_interquartile_mean_equals_rliable(strata, value, bounds) -> None:
    found = iqm_interval(strata)
    assert found.value == iqm(strata) == pytest.approx(value, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(bounds, abs=0.006)  # 2,000 resamples instead of 50,000
    assert iqm_interval(strata) == found


def test_probability_of_improvement_equals_rliable() -> None:
    assert probability_of_improvement(X, Y) == pytest.approx(0.6375, rel=1e-12)
    assert probability_of_improvement(Y, X) == pytest.approx(1 - 0.6375)
    assert probability_of_improvement(X, X) == 0.5


def test_bootstrap_of_a_single_seed_has_no_bounds() -> None:
    assert iqm_interval([[0.5]]) == Interval(0.5)
    assert iqm_interval([[0.5, 0.6, 0.7], [0.1]]).low is None
    assert iqm_interval([[0.5, 0.5]]) == Interval(0.5, 0.5, 0.5)


def test_mean_interval_equals_scipy() -> None:
    values = X[0]
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx((np.mean(values), low, high))
    assert mean_interval([0.3]) == Interval(0.3)


def test_mean_ci_formats_the_half_width() -> None:
    half = stats.t.ppf(0.975, 2) * stats.sem([10.0, 20.0, 30.0])
    assert mean_ci([0.1, None, 0.2, 0.3]) == f"20.0 ± {half:.1f}"
    assert mean_ci([1.0, 2.0], scale=1, digits=2) == "1.50 ± 6.35"
    assert mean_ci([0.5]) == "50.0" and mean_ci([None]) == "–"


def test_intervals_have_95_percent_coverage() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    found = [mean_interval(list(draw)) for draw in draws]
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


def test_gains_are_paired_by_seed() -> None:
    scores, base = {0: 0.9, 1: 0.5, 2: 0.7, 7: 0.0}, {1: 0.4, 0: 0.6, 2: 0.7, 9: 1.0}
    assert paired_gain(scores, base) == pytest.approx(mean_interval([0.3, 0.1, 0.0]))
    assert paired_gain({3: 1.0}, base) is None
    assert paired_improvement(scores, base).value == pytest.approx(2.5 / 3)
    assert paired_improvement({3: 1.0}, base) is None


@pytest.mark.parametrize(("wins", "seeds"), [(5, 5), (0, 5), (3, 5), (1, 1), (17, 20)])
def test_fraction_of_wins_has_wilsons_interval(wins: int, seeds: int) -> None:
    found = paired_improvement({s: float(s < wins) for s in range(seeds)}, dict.fromkeys(range(seeds), 0.5))
    expected = stats.binomtest(wins, seeds).proportion_ci(method="wilson")
    assert found == pytest.approx((wins / seeds, expected.low, expected.high), abs=1e-12)


def is_significantly_better(a: dict[int, float], b: dict[int, float]) -> bool:
    """Whether a is significantly better than b, by scipy's tests."""
    shared = sorted(set(a) & set(b))
    if len(shared) >= 2:
        test = stats.ttest_rel([a[s] for s in shared], [b[s] for s in shared])
    elif len(a) >= 2 and len(b) >= 2:
        test = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
    else:
        return False
    return bool(test.statistic > 0 and test.pvalue < 0.05)


def test_rank_counts_significantly_better_methods() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=60)
    methods = []
    for number in range(24):  # same, overlapping, other and single seeds
        seeds = [range(5), range(2, 9), range(10, 15), [20 + number]][number % 4]
        methods.append({s: number / 12 + 0.7 * noise[s] + 0.3 * rng.normal() for s in seeds})
    expected = [1 + sum(is_significantly_better(other, method) for other in methods) for method in methods]
    assert ranks(methods) == expected
    assert len(set(expected)) > 5


def test_equal_methods_share_a_rank() -> None:
    same = {0: 0.5, 1: 0.7, 2: 0.6}
    better = {seed: score + 0.125 for seed, score in same.items()}
    assert ranks([same, dict(same), better]) == [2, 2, 1]
    assert ranks([{0: 0.1}, {0: 0.9}]) == [1, 1]
    assert ranks([dict.fromkeys((0, 1), 0.5), dict.fromkeys((5, 6), 0.25)]) == [1, 2]
    assert ranks([]) == []


def test_ranks_do_not_depend_on_the_order_of_methods() -> None:
    methods = [dict(enumerate(row)) for row in X]
    usual = ranks(methods)
    for order in itertools.permutations(range(4)):
        assert ranks([methods[i] for i in order]) == [usual[i] for i in order]
