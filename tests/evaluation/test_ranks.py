"""Figures of how well a score ranks, against scipy, resampled lists and noise that is known."""

import math

import numpy as np
import pytest
from scipy import stats

from nas.evaluation import ranks


def drawn(n=15, levels=6, seed=0):
    """Two related lists with ties."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, n).astype(float)
    return x, x + rng.integers(0, levels, n)


@pytest.mark.parametrize(
    ("statistic", "reference"), [(ranks.kendall, stats.kendalltau), (ranks.spearman, stats.spearmanr)]
)
def test_correlations_of_resamples_are_those_of_the_resampled_lists(statistic, reference):
    x, y = drawn()
    counts = ranks.draws(15)[:20]
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 15).all()
    expected = [reference(np.repeat(x, each), np.repeat(y, each))[0] for each in counts.astype(int)]
    assert statistic(x, y, counts) == pytest.approx(np.array(expected), rel=1e-9)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    expected = 2 / math.pi * math.asin(0.6)  # Kendall's tau of a bivariate normal
    for seed in range(60):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 40).T
        found = ranks.estimate(ranks.kendall(x, y, ranks.draws(40, seed)))
        inside += found.low <= expected <= found.high
    assert 48 <= inside <= 60  # 54 are expected


def test_a_constant_has_no_correlation():
    x, y = np.ones(8), np.arange(8.0)
    for statistic in (ranks.kendall, ranks.spearman):
        assert np.isnan(ranks.estimate(statistic(x, y, ranks.draws(8)))).all()


def test_noise_is_the_deviation_within_networks():
    rng = np.random.default_rng(0)
    runs = [
        list(mean + rng.normal(0, 0.003, n)) for mean, n in zip(rng.uniform(0, 1, 600), [1, 2, 3] * 200, strict=True)
    ]
    assert ranks.noise(runs) == pytest.approx(0.003, rel=0.1)
    assert ranks.noise([[0.5, 0.7], [0.1]]) == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert ranks.noise([[0.5], [0.1]]) is None


@pytest.mark.parametrize("trainings", [1, 3])
def test_the_ceiling_is_what_the_noise_free_accuracies_reach(trainings):
    """Of normal accuracies with so much noise, Kendall's tau is known: 2 / pi asin(r)."""
    rng = np.random.default_rng(0)
    true = rng.normal(0.88, 0.004, 200)
    seen = true + rng.normal(0, 0.0024 / math.sqrt(trainings), 200)
    found = ranks.ceiling(seen, np.full(200, trainings), 0.0024, ranks.kendall)
    reliability = 0.004**2 / (0.004**2 + 0.0024**2 / trainings)
    assert found == pytest.approx(2 / math.pi * math.asin(math.sqrt(reliability)), abs=0.05)
    assert found == pytest.approx(stats.kendalltau(true, seen)[0], abs=0.05)


def test_without_noise_the_ceiling_is_one_and_with_nothing_else_it_is_zero():
    seen = np.linspace(0, 1, 20)
    assert ranks.ceiling(seen, np.ones(20), 1e-9, ranks.spearman) == pytest.approx(1)
    assert ranks.ceiling(seen, np.ones(20), 1.0, ranks.kendall) == 0


def test_regret_is_what_the_three_favourites_miss():
    truth = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert ranks.regret(np.array([0.0, 1, 2, 3, 4]), truth) == pytest.approx(0.2)
    assert ranks.regret(truth, truth) == 0
