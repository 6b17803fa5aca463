"""Intervals for the three kinds of numbers that evidence is made of, all at 95 %, and what tells them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats
from torch import Tensor

__all__ = [
    "Interval",
    "auroc",
    "correlation",
    "holm",
    "mean",
    "paired_drop",
    "paired_score",
    "proportion",
    "standard_error",
]

Interval = tuple[float, float]


def proportion(right: np.ndarray) -> tuple[float, Interval]:
    """A share of n yes/no outcomes with its Wilson interval (scipy)."""
    n, k = len(right), int(np.sum(right))
    low, high = stats.binomtest(k, n).proportion_ci(method="wilson")
    return k / n, (float(low), float(high))


def mean(values: np.ndarray, share: bool = False) -> tuple[float, Interval]:
    """A mean with its t interval; of a single value, the value itself.

    :param share: values in [0, 1], which the interval does not leave.
    """
    centre = float(np.mean(values))
    if len(values) < 2:
        return centre, (centre, centre)
    half = standard_error(values) * float(special.stdtrit(len(values) - 1, 0.975))
    low, high = centre - half, centre + half
    return centre, (max(0.0, low), min(1.0, high)) if share else (low, high)


def standard_error(values: np.ndarray) -> float:
    """Of a mean of n values, two or more. (``scipy.stats.sem`` takes over twenty times as long for 60 of them.)"""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def paired_drop(before: np.ndarray, after: np.ndarray) -> tuple[float, Interval]:
    """Mean of before − after over the same n yes/no outcomes, with its score interval (Tango 1998): the drops
    that :func:`paired_score` does not reject. Where no outcome changed it still has a width, that of n.
    """
    z, end = float(stats.norm.ppf(0.975)), 1 - 1e-9

    def off(drop: float, by: float) -> float:
        return paired_score(before, after, drop) - by  # falls as the drop rises

    low = optimize.brentq(off, -end, end, (z,)) if off(-end, z) > 0 else -1.0
    high = optimize.brentq(off, -end, end, (-z,)) if off(end, -z) < 0 else 1.0
    return float(before.mean() - after.mean()), (float(low), float(high))


def paired_score(before: np.ndarray, after: np.ndarray, drop: float) -> float:
    """Score statistic of *the drop is this* for n paired yes/no outcomes, standard normal then (Tango 1998, Statistics
    in Medicine 17:891): far below 0 the drop is smaller, far above it is larger.

    Unlike a t statistic it holds where few outcomes change, or none.

    :param drop: between −1 and 1, both left out.
    """
    n = len(before)
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    if drop < 0:  # the same seen from the other side
        return -paired_score(after, before, -drop)
    b, c = (2 * n - lost + gained) * drop - lost - gained, -gained * drop * (1 - drop)
    share = (np.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # gained, if the drop is this
    error = np.sqrt(max(n * (2 * share + drop * (1 - drop)), 1e-12))
    return float((lost - gained - n * drop) / error)


def auroc(
    positive: np.ndarray, negative: np.ndarray, rng: np.random.Generator, resamples: int = 1000
) -> tuple[float, Interval]:
    """P(positive > negative), ties counted half, with its percentile bootstrap interval.

    Both samples are resampled. At most 500 of each are used (drawn at random), so that all
    resamples are one product of matrices.
    """
    positive, negative = (
        rng.choice(values, 500, replace=False) if len(values) > 500 else values
        for values in (positive, negative)
    )
    difference = positive[:, None] - negative[None, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    m, n = wins.shape
    weights_p = rng.multinomial(m, np.full(m, 1 / m), size=resamples) / m
    weights_n = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    draws = np.einsum("bm,bm->b", weights_p, weights_n @ wins.T)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(wins.mean()), (float(low), float(high))


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects (Holm 1979); keeps the family-wise error at
    ``alpha`` whatever the dependence.
    """
    rejected = [False] * len(p_values)
    for rank, place in enumerate(np.argsort(p_values)):
        if p_values[place] > alpha / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of each column of a [n, C] with the same column of b: [C]; 0 where one is constant."""
    return (_standard(a.double()) * _standard(b.double())).mean(0)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, unbiased=False).clamp_min(1e-12)
