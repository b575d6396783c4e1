"""How well a score ranks networks whose accuracy is known: figures on arrays, one entry a network.

Intervals are percentiles of a bootstrap over networks. A resample is given as how often each network was drawn, so one
set of draws serves all scores, and differences between two scores are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.9
RESAMPLES = 1000
FAVOURITES = 3

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A figure of these networks with the interval that others like them would leave; NaN where nothing varies."""

    value: float
    low: float
    high: float


def draws(networks: int, seed: int = 0) -> np.ndarray:
    """The networks themselves, then `RESAMPLES` resamples, as counts. Shape: (1 + RESAMPLES, networks)"""
    rng = np.random.default_rng(seed)
    resampled = rng.multinomial(networks, np.full(networks, 1 / networks), RESAMPLES)
    return np.vstack([np.ones((1, networks)), resampled])


def kendall(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of every resample; NaN where x or y is the same for all of it.

    Shape: x (n,), y (n,), counts (resamples, n) -> (resamples,)
    """
    order_x, order_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)

    def pairs(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = ((counts @ values) * counts).sum(1)
        return found

    with np.errstate(invalid="ignore", divide="ignore"):
        tau: np.ndarray = pairs(order_x * order_y) / np.sqrt(pairs(order_x**2) * pairs(order_y**2))
    return tau


def spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of every resample, shapes and NaN as for `kendall`; ties share their mean rank."""
    total = counts.sum(1, keepdims=True)
    ranks = [counts @ ((v[:, None] < v) + 0.5 * (v[:, None] == v)) for v in (x, y)]  # (resamples, n), from 0.5 each
    a, b = (rank - (counts * rank).sum(1, keepdims=True) / total for rank in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: np.ndarray = (counts * a * b).sum(1) / np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    return rho


def estimate(values: np.ndarray) -> Estimate:
    """From a statistic of `draws`: its first entry, and the interval of the others."""
    known = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(known):
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def noise(runs: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of one training's accuracy from seed to seed, pooled; None where no network has two.

    Args:
        runs: of each network, the accuracies of its trainings.
    """
    freedom = sum(len(each) - 1 for each in runs)
    squares = sum(float(np.var(each)) * len(each) for each in runs)
    return float(np.sqrt(squares / freedom)) if freedom else None


def ceiling(truth: np.ndarray, trainings: np.ndarray, sigma: float, statistic: Statistic, seed: int = 0) -> float:
    """What a perfect score reaches, which knows each network's accuracy without the noise of training.

    That accuracy is drawn again and again from what is known of it: normal among the networks, with what `sigma` leaves
    of their variance, and seen through the mean of so many trainings.

    Args:
        truth: (n,) mean accuracies.
        trainings: (n,) of how many.
        sigma: as `noise` says.
        statistic: `kendall` or `spearman`.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    blur = sigma**2 / trainings
    spread = max(float(np.var(truth, ddof=1) - blur.mean()), 0.0)
    if not spread:
        return 0.0
    trust = spread / (spread + blur)
    mean = np.average(truth, weights=1 / (spread + blur))
    perfect = mean + trust * (truth - mean) + np.sqrt(trust * blur) * rng.standard_normal((RESAMPLES, len(truth)))
    once = np.ones((1, len(truth)))
    return float(np.mean([statistic(each, truth, once)[0] for each in perfect]))


def regret(score: np.ndarray, truth: np.ndarray) -> float:
    """What is lost by training only the score's three favourites: the best accuracy less the best among theirs."""
    favourites = np.argsort(-score, kind="stable")[:FAVOURITES]
    return float(truth.max() - truth[favourites].max())
