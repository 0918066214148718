"""How sure one can be of a mean, of a gain and of a rank, from a handful of seeds (pure functions).

All intervals are at 95 %. Sources: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (interquartile mean, stratified bootstrap, probability of improvement); scipy for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

LEVEL = 0.95
RESAMPLES = 2000
_TRIMMED = 0.25  # from either end

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A figure and the bounds of its 95 % interval; without bounds where there is too little to tell them."""

    value: float
    low: float | None = None
    high: float | None = None


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean, and Student's t interval where there are two values or more.

    Args:
        values: One per seed. [S]
    """
    found = np.asarray(values, float)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean)
    half = float(student(len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Interval(mean, mean - half, mean + half)


def iqm(strata: Sequence[npt.ArrayLike]) -> Any:
    """Interquartile mean: of all values together, without the lowest and the highest quarter of them.

    Args:
        strata: Scores by scenario, the seeds last. [scenarios][..., S]

    Returns:
        As ``scipy.stats.trim_mean(…, 0.25)``, which is an order of magnitude slower. [...]
    """
    together = np.sort(np.concatenate([np.asarray(each, float) for each in strata], -1), -1)
    cut = int(_TRIMMED * together.shape[-1])
    return together[..., cut : together.shape[-1] - cut].mean(-1)


def iqm_interval(strata: Sequence[Sequence[float]]) -> Interval:
    """Interquartile mean with a stratified bootstrap interval: seeds are drawn anew within each scenario by itself.

    The percentile method, as rliable; the draws are the same every time.

    Args:
        strata: Scores by scenario, one per seed. [scenarios][S]
    """
    value = float(iqm(strata))
    if min(map(len, strata)) < 2:
        return Interval(value)
    if all(len(set(each)) == 1 for each in strata):
        return Interval(value, value, value)
    drawn = stats.bootstrap(
        [np.asarray(each, float) for each in strata],
        lambda *each, axis: iqm(each),  # resamples come with the seeds last
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Interval(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def paired_gain(scores: Mapping[Any, float], base: Mapping[Any, float]) -> Interval | None:
    """Mean difference over the seeds that both have, with Student's t interval; None where they share no seed."""
    shared = [scores[seed] - base[seed] for seed in scores if seed in base]
    return mean_interval(shared) if shared else None


def stratified_gain(scores: Sequence[Mapping[Any, float]], base: Sequence[Mapping[Any, float]]) -> Interval | None:
    """Mean over scenarios of the mean difference over shared seeds; None where no scenario has any.

    Scenarios are those that there are, not drawn from many: the interval is that of seeds alone, by the variances of
    the scenarios' means and Welch and Satterthwaite's degrees of freedom. Without bounds where a scenario has one seed.

    Args:
        scores: By scenario, then by seed.
        base: Likewise; scenarios in the same order.
    """
    pairs = [
        [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        for ours, theirs in zip(scores, base, strict=True)
    ]
    strata = [np.asarray(each, float) for each in pairs if each]
    if not strata:
        return None
    value = float(np.mean([each.mean() for each in strata]))
    if min(map(len, strata)) < 2:
        return Interval(value)
    squares = np.array([[each.var(ddof=1) / len(each)] for each in strata])
    error, freedom = _pooled(squares, np.array([[len(each) - 1.0] for each in strata]))
    half = float((student(freedom) * error)[0])
    return Interval(value, value - half, value + half)


def paired_improvement(scores: Mapping[Any, float], base: Mapping[Any, float]) -> Interval | None:
    """Share of the shared seeds in which ``scores`` is higher, a tie counting half, with Wilson's interval.

    A bootstrap would call five wins out of five certain; Wilson's interval then begins at 57 %.
    """
    wins = [(1 + np.sign(scores[seed] - base[seed])) / 2 for seed in scores if seed in base]
    if not wins:
        return None
    share, n = float(np.mean(wins)), len(wins)
    z2 = special.ndtri((1 + LEVEL) / 2) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def probability_of_improvement(scores: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> float:
    """P(a run of one is better than a run of the other), any seed against any, averaged over scenarios (rliable's).

    Args:
        scores: By scenario, one per seed. [scenarios][S]
        base: Likewise; scenarios in the same order.
    """
    shares = []
    for ours, theirs in zip(scores, base, strict=True):
        difference = np.asarray(ours, float)[:, None] - np.asarray(theirs, float)
        shares.append(float(np.mean((1 + np.sign(difference)) / 2)))
    return float(np.mean(shares))


def ranks(entries: Sequence[Mapping[Any, float]]) -> list[int]:
    """Those of :func:`stratified_ranks` in a single scenario.

    Args:
        entries: Scores by seed, of each entry; the higher the better.
    """
    return stratified_ranks([[entry] for entry in entries])


def stratified_ranks(entries: Sequence[Sequence[Mapping[Any, float]]]) -> list[int]:
    """1 + how many others are better beyond doubt; whoever shares a rank cannot be told apart from its best.

    Better beyond doubt: the 95 % t interval of the difference, a mean over scenarios, lies above 0; within each
    scenario it is paired over shared seeds where there are two or more, Welch's otherwise. One seed proves nothing.
    Not corrected for the number of comparisons.

    Args:
        entries: Scores by scenario, then by seed, of each entry; the higher the better.
    """
    tables = [_table(stratum) for stratum in zip(*entries, strict=True)]
    own = [_moments(scores) for scores in tables]
    found = []
    for row in range(len(entries)):
        parts = [_difference(scores, row, each) for scores, each in zip(tables, own, strict=True)]
        difference, squares, freedom = (np.stack(each) for each in zip(*parts, strict=True))  # [scenarios, L] each
        error, freedom = _pooled(squares, freedom)
        with np.errstate(invalid="ignore"):
            found.append(1 + int((difference.mean(0) - student(freedom) * error > 0).sum()))
    return found


def _pooled(squares: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """Standard error of a mean over scenarios, and its degrees of freedom, of those in each. [scenarios, L] to [L]."""
    together = squares.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.where(together == 0, freedom.sum(0), together**2 / (squares**2 / freedom).sum(0))
    return np.sqrt(together) / len(squares), pooled


def _table(entries: Sequence[Mapping[Any, float]]) -> Floats:
    """Scores of one scenario [L, S], NaN where there is none."""
    seeds = list(dict.fromkeys(seed for entry in entries for seed in entry))
    scores = np.array([[entry.get(seed, np.nan) for seed in seeds] for entry in entries], float)
    return scores.reshape(len(entries), len(seeds))


def _difference(scores: Floats, row: int, own: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
    """By how much entries are better than that of a row, the squared error of it, and its degrees of freedom. [L] each.

    NaN where too few seeds are there to tell.
    """
    shared, mean, variance = _moments(scores - scores[row])
    paired = shared >= 2
    with np.errstate(divide="ignore", invalid="ignore"):
        count, means, variances = own
        parts = variances / count
        sum_of_parts = parts + parts[row]
        welch = sum_of_parts**2 / (parts**2 / (count - 1) + parts[row] ** 2 / (count[row] - 1))
        welch = np.where(sum_of_parts == 0, count + count[row] - 2, welch)
        several = (count >= 2) & (count[row] >= 2)
        difference = np.where(paired, mean, np.where(several, means - means[row], np.nan))
        square = np.where(paired, variance / shared, sum_of_parts)
        freedom = np.where(paired, shared - 1, welch)
    return difference, square, freedom


def _moments(scores: Floats) -> tuple[Floats, Floats, Floats]:
    """How many values each row has, their mean, and their variance. [L] each."""
    there = ~np.isnan(scores)
    count = there.sum(1).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, scores, 0).sum(1) / count
        variance = np.where(there, (scores - mean[:, None]) ** 2, 0).sum(1) / (count - 1)
    return count, mean, variance


def student(freedom: float | Floats) -> Floats:
    """Half the width of a 95 % interval in standard errors: the quantile of Student's t."""
    found: Floats = special.stdtrit(freedom, (1 + LEVEL) / 2)
    return found
