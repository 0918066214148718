"""Confidence intervals of means, gains and ranks over a few seeds (pure functions).

All intervals are 95 % confidence intervals. Sources: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice" (interquartile mean, stratified bootstrap, probability of improvement); scipy for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

LEVEL = 0.95
RESAMPLES = 2000
PLUS_MINUS = "±: half-width of the 95 % confidence interval over seeds (Student's t)"
_TRIMMED = 0.25  # fraction removed at each end

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value and the bounds of its 95 % confidence interval; without bounds if there are too few seeds."""

    value: float
    low: float | None = None
    high: float | None = None


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean, with Student's t interval if there are two values or more.

    Args:
        values: One per seed. [S]
    """
    found = np.asarray(values, float)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean)
    half = float(student(len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Interval(mean, mean - half, mean + half)


def mean_ci(values: Sequence[float | None], scale: float = 100.0, digits: int = 1) -> str:
    """Format ``mean ± half-width of the 95 % confidence interval`` of the values that are not None.

    Args:
        values: One per seed. [S]
        scale: Factor; by default fractions are shown as percentages.
        digits: Digits after the decimal point.

    Returns:
        The mean alone for a single value; a dash if there are no values.
    """
    present = [scale * value for value in values if value is not None]
    if not present:
        return "–"
    mean, _, high = mean_interval(present)
    return f"{mean:.{digits}f}" + ("" if high is None else f" ± {high - mean:.{digits}f}")


def iqm(strata: Sequence[npt.ArrayLike]) -> Any:
    """Interquartile mean: the mean of the pooled scores without the lowest and highest 25 %.

    Args:
        strata: Scores by setting, seeds last. [settings][..., S]

    Returns:
        The same as ``scipy.stats.trim_mean(…, 0.25)``, which is an order of magnitude slower. [...]
    """
    together = np.sort(np.concatenate([np.asarray(each, float) for each in strata], -1), -1)
    cut = int(_TRIMMED * together.shape[-1])
    return together[..., cut : together.shape[-1] - cut].mean(-1)


def iqm_interval(strata: Sequence[Sequence[float]]) -> Interval:
    """Interquartile mean with a stratified bootstrap interval: seeds are resampled within each setting.

    The percentile method, as in rliable, with a fixed random seed.

    Args:
        strata: Scores by setting, one per seed. [settings][S]
    """
    value = float(iqm(strata))
    if min(map(len, strata)) < 2:
        return Interval(value)
    if all(len(set(each)) == 1 for each in strata):
        return Interval(value, value, value)
    from scipy import stats  # slow to import

    drawn = stats.bootstrap(
        [np.asarray(each, float) for each in strata],
        lambda *each, axis: iqm(each),  # seeds are the last axis of the resamples
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Interval(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def paired_gain(scores: Mapping[Any, float], base: Mapping[Any, float]) -> Interval | None:
    """Mean difference over shared seeds, with Student's t interval; None if no seed is shared."""
    shared = [scores[seed] - base[seed] for seed in scores if seed in base]
    return mean_interval(shared) if shared else None


def stratified_gain(scores: Sequence[Mapping[Any, float]], base: Sequence[Mapping[Any, float]]) -> Interval | None:
    """Mean over settings of the mean difference over shared seeds; None if no setting has a shared seed.

    Settings are fixed, only seeds are random: the interval combines the variances of the settings' means, with
    Welch–Satterthwaite degrees of freedom. It has no bounds if a setting has only one shared seed.

    Args:
        scores: By setting, then by seed.
        base: Likewise, with settings in the same order.
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
    """Fraction of shared seeds in which ``scores`` is higher, with Wilson's interval; a tie counts half.

    A bootstrap would give five wins out of five an interval of zero width; Wilson's begins at 57 %.
    """
    wins = [(1 + np.sign(scores[seed] - base[seed])) / 2 for seed in scores if seed in base]
    if not wins:
        return None
    fraction, n = float(np.mean(wins)), len(wins)
    z2 = special.ndtri((1 + LEVEL) / 2) ** 2
    middle = (fraction + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (fraction * (1 - fraction) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(fraction, max(0.0, middle - half), min(1.0, middle + half))


def probability_of_improvement(scores: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> float:
    """P(score > base) over all pairs of seeds, averaged over settings (as rliable defines it).

    Args:
        scores: By setting, one per seed. [settings][S]
        base: Likewise, with settings in the same order.
    """
    fractions = []
    for ours, theirs in zip(scores, base, strict=True):
        difference = np.asarray(ours, float)[:, None] - np.asarray(theirs, float)
        fractions.append(float(np.mean((1 + np.sign(difference)) / 2)))
    return float(np.mean(fractions))


def ranks(methods: Sequence[Mapping[Any, float]]) -> list[int]:
    """Rank methods within one setting; see :func:`stratified_ranks`.

    Args:
        methods: Scores of each method by seed; higher is better.
    """
    return stratified_ranks([[method] for method in methods])


def stratified_ranks(methods: Sequence[Sequence[Mapping[Any, float]]]) -> list[int]:
    """Rank methods: 1 + the number of significantly better methods. Methods may share a rank.

    Significantly better: the 95 % confidence interval of the difference lies above 0. The difference is a mean over
    settings. Within a setting it is paired over shared seeds if there are two or more, and Welch's otherwise. With one
    seed, nothing is significant. There is no correction for multiple comparisons.

    Args:
        methods: Scores of each method by setting, then by seed; higher is better.
    """
    tables = [_table(stratum) for stratum in zip(*methods, strict=True)]
    moments = [_moments(scores) for scores in tables]
    found = []
    for row in range(len(methods)):
        parts = [_difference(scores, row, own) for scores, own in zip(tables, moments, strict=True)]
        difference, squares, freedom = (np.stack(each) for each in zip(*parts, strict=True))  # [settings, M] each
        error, freedom = _pooled(squares, freedom)
        with np.errstate(invalid="ignore"):
            found.append(1 + int((difference.mean(0) - student(freedom) * error > 0).sum()))
    return found


def _pooled(squares: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """Standard error of a mean over settings, and its degrees of freedom. [settings, M] to [M]."""
    together = squares.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.where(together == 0, freedom.sum(0), together**2 / (squares**2 / freedom).sum(0))
    return np.sqrt(together) / len(squares), pooled


def _table(methods: Sequence[Mapping[Any, float]]) -> Floats:
    """Scores in one setting; NaN for a missing seed. [M, S]."""
    seeds = list(dict.fromkeys(seed for method in methods for seed in method))
    scores = np.array([[method.get(seed, np.nan) for seed in seeds] for method in methods], float)
    return scores.reshape(len(methods), len(seeds))


def _difference(scores: Floats, row: int, moments: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
    """How much better each method is than that of a row: difference, squared standard error, degrees of freedom.

    [M] each; NaN if there are too few seeds.
    """
    shared, mean, variance = _moments(scores - scores[row])
    paired = shared >= 2
    with np.errstate(divide="ignore", invalid="ignore"):
        count, means, variances = moments
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
    """Number, mean and variance of the values of each row that are not NaN. [M] each."""
    present = ~np.isnan(scores)
    count = present.sum(1).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(present, scores, 0).sum(1) / count
        variance = np.where(present, (scores - mean[:, None]) ** 2, 0).sum(1) / (count - 1)
    return count, mean, variance


def student(freedom: float | Floats) -> Floats:
    """Quantile of Student's t: the half-width of a 95 % confidence interval in standard errors."""
    found: Floats = special.stdtrit(freedom, (1 + LEVEL) / 2)
    return found
