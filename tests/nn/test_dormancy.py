from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from plastibench.nn.dormancy import below_threshold, dormant_units, lowest_fraction, normalized_scores
from plastibench.nn.unit_statistics import UnitStatistics
from tests.support.references import array

FIELDS = {
    "redo": "activation",
    "regrama": "pre_gradient",
    "regrama-post": "post_gradient",
    "regrama-weight": "weight_gradient",
    "low-gradient-quantile": "pre_gradient",
    "weight-norm": "weight_norm",
}
THRESHOLDED = ("redo", "regrama", "regrama-post", "regrama-weight")
RANKED = ("low-gradient-quantile", "weight-norm")


def statistics(length: int = 12, seed: int = 0) -> UnitStatistics:
    """Statistics that all differ, so that scoring by the wrong one fails."""
    values = torch.rand(6, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return UnitStatistics(*values)


def mask_of(criterion: str, stats: UnitStatistics, **options: object) -> np.ndarray:
    values = {"tau": 0.5, "quantile": 0.25, "generator": torch.Generator().manual_seed(0), **options}
    return dormant_units(criterion, stats, **values).numpy()


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.9, 1.0, 5.0])
@pytest.mark.parametrize("criterion", THRESHOLDED)
def test_threshold_criteria_compare_with_the_mean_of_the_layer(criterion, tau):
    stats = statistics()
    values = array(getattr(stats, FIELDS[criterion]))
    np.testing.assert_array_equal(mask_of(criterion, stats, tau=tau), values / values.mean() <= tau)


@pytest.mark.parametrize("quantile", [0.0, 0.08, 0.25, 0.4, 0.99, 1.0])
@pytest.mark.parametrize("criterion", RANKED)
def test_ranked_criteria_select_the_lowest_fraction(criterion, quantile):
    stats = statistics()
    order = np.argsort(array(getattr(stats, FIELDS[criterion])))
    expected = np.isin(np.arange(12), order[: int(np.floor(quantile * 12))])
    np.testing.assert_array_equal(mask_of(criterion, stats, quantile=quantile), expected)


@pytest.mark.parametrize(("quantile", "length", "count"), [(0.29, 100, 29), (0.7, 10, 7), (0.3, 10, 3), (0.15, 20, 3),
                                                           (0.4, 192, 76), (0.5, 3, 1), (0.9, 1, 0)])  # fmt: skip
def test_fraction_is_rounded_down_without_floating_point_errors(quantile, length, count):
    assert int(lowest_fraction(torch.arange(float(length)), quantile).sum()) == count


def test_ties_are_selected_in_order_up_to_the_fraction():
    assert lowest_fraction(torch.zeros(7), 0.5).tolist() == [True] * 3 + [False] * 4
    tied = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0])
    assert lowest_fraction(tied, 0.6).tolist() == [False, True, True, True, False]


def test_score_equal_to_the_threshold_is_dormant():
    assert below_threshold(torch.tensor([0.1, 0.1 + 1e-9, 0.0], dtype=torch.float64), 0.1).tolist() == [
        True,
        False,
        True,
    ]


def test_equal_units_are_dormant_at_threshold_one():
    assert below_threshold(normalized_scores(torch.full((5,), 0.3)), 1.0).all()


def test_only_zero_scores_are_dormant_at_threshold_zero():
    scores = torch.tensor([0.0, 1e-12, 1.0, 0.0])
    assert below_threshold(normalized_scores(scores), 0.0).tolist() == [True, False, False, True]


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_dead_layer_is_dormant(tau):
    assert below_threshold(normalized_scores(torch.zeros(4)), tau).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12])
def test_normalized_scores_are_scale_invariant(scale):
    values = statistics().pre_gradient
    torch.testing.assert_close(normalized_scores(scale * values), normalized_scores(values), rtol=1e-8, atol=0)
    assert float(normalized_scores(values).mean()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("criterion", ["regrama", "low-gradient-quantile"])
def test_groups_are_scored_separately(criterion):
    stats = statistics()
    stats.pre_gradient[4:8] *= 1000  # one group is much larger
    joint, separate = mask_of(criterion, stats, tau=0.6), mask_of(criterion, stats, tau=0.6, groups=3)
    assert not joint[4:8].any()
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        values = array(stats.pre_gradient)[part]
        below, least = values / values.mean() <= 0.6, np.arange(4) == values.argmin()
        expected = below if criterion == "regrama" else least
        np.testing.assert_array_equal(separate[part], expected)
    assert (joint != separate).any()


def random_mask(generator: torch.Generator, quantile: float = 0.25, length: int = 12) -> Tensor:
    return dormant_units("random", statistics(length), tau=0.5, quantile=quantile, generator=generator)


def test_random_masks_depend_only_on_their_generator():
    before = torch.get_rng_state()
    first, again = (random_mask(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(3)
    masks = torch.stack([random_mask(generator) for _ in range(400)])
    assert (masks.sum(1) == 3).all()  # always the same fraction
    frequencies = masks.double().mean(0)
    assert (frequencies - 0.25).abs().max() < 0.1  # every unit is equally likely
