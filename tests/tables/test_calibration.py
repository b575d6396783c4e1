from __future__ import annotations

import math

import numpy as np
import pytest

from nas.core.errors import BudgetError
from nas.core.ops import Conv, Row, Shape
from nas.tables.calibration import INTERVAL_NETWORKS, Calibration, calibrate, networks_for, row_kind
from nas.tables.card import coverage_band
from search_spaces.efficientformer import MB4D

NOISE = 0.03


def fit_of(ratios) -> Calibration:
    ordered = tuple(sorted(ratios))
    return Calibration(1.0, 0.0, len(ordered), 1.0, ordered)


def simulated(generator: np.random.Generator, networks: int):
    """Sums of two kinds of rows, and what networks of them take: two factors, an offset, and noise of 3 %."""
    parts = generator.uniform(200, 2000, (networks, 2))
    truth = (1.1 * parts[:, 0] + 1.3 * parts[:, 1] + 5) * generator.normal(1, NOISE, networks)
    return [{"MB4D": float(a), "MB3D": float(b)} for a, b in parts], truth


def predicted(fit: Calibration, kinds) -> np.ndarray:
    factors = dict(fit.factors)
    return np.array([fit.us(sum(factors.get(name, 1.0) * us for name, us in sums.items())) for sums in kinds])


def test_intervals_and_bounds_hold_as_often_as_they_say():
    generator = np.random.default_rng(1)
    covered, exceeded, outside = [], [], 0
    low, high = coverage_band(40, 100)
    runs = 150
    for _ in range(runs):
        fit = calibrate(*simulated(generator, 40))
        kinds, truth = simulated(generator, 100)
        ratio = truth / predicted(fit, kinds)
        covered.append(100 * np.mean(np.abs(ratio - 1) <= fit.interval))
        exceeded.append(np.mean(ratio > fit.bound(0.95)))
        outside += not low <= covered[-1] <= high
    # 37 of 41 and 39 of 41 by exchangeability; the form is chosen on the same networks, which costs about a point
    assert np.mean(covered) == pytest.approx(100 * 37 / 41, abs=1.5)
    assert np.mean(exceeded) == pytest.approx(2 / 41, abs=0.015)
    assert outside <= 0.05 * runs + 3 * np.sqrt(0.05 * 0.95 * runs)


def test_factors_of_kinds_are_found_where_they_are_true_and_only_then():
    generator = np.random.default_rng(2)
    kinds, _ = simulated(generator, 60)
    parts = np.array([[sums["MB3D"], sums["MB4D"]] for sums in kinds])
    fit = calibrate(kinds, parts @ (1.5, 0.9))
    three, four = (fit.scale * dict(fit.factors)[name] for name in ("MB3D", "MB4D"))
    assert (three, four) == pytest.approx((1.5, 0.9), rel=0.03)  # shrunk a little
    assert fit.mape_percent < 2
    plain = calibrate(kinds, 1.2 * parts.sum(1) * generator.normal(1, 0.02, 60))
    assert plain.factors == ()
    assert plain.scale == pytest.approx(1.2, rel=0.01)


def test_the_bound_is_the_ratio_of_its_rank():
    fit = fit_of(1 + number / 1000 for number in range(1, 41))
    assert fit.bound(0.95) == 1.039  # the 39th of 40: ceil(0.95 * 41)
    assert fit.bound(0.5) == 1.021
    assert fit.interval == pytest.approx(0.037)  # the 37th: ceil(0.9 * 41)
    assert fit_of(1 - number / 1000 for number in range(1, 41)).bound(0.95) == 0.998  # predictions were too high


@pytest.mark.parametrize(("confidence", "needed"), [(0.5, 40), (0.95, 40), (0.975, 40), (0.98, 49), (0.99, 99)])
def test_a_bound_needs_networks_beyond_it(confidence, needed):
    assert networks_for(confidence) == needed
    assert needed / (needed + 1) >= confidence - 1e-9  # the largest ratio holds as often
    fit_of(np.linspace(0.9, 1.1, needed)).bound(confidence)
    with pytest.raises(BudgetError, match=f"needs {needed} calibration networks, got {needed - 1}"):
        fit_of(np.linspace(0.9, 1.1, needed - 1)).bound(confidence)


def test_too_few_networks_give_no_interval():
    assert fit_of(np.linspace(0.9, 1.1, INTERVAL_NETWORKS - 1)).interval is None


def test_every_form_says_what_it_is():
    fit = Calibration(1.1, 3.0, 40, 2.0, (1.0,), power=1.05, factors=(("MB4D", 1.2),))
    assert str(fit) == ("1.1000 x sum ^ 1.0500 + 3.0 us with MB4D x1.200, held-out error 2.0 % on 40 networks")
    assert fit.us(100.0) == pytest.approx(1.1 * 100**1.05 + 3)


def test_grouped_convolutions_are_a_kind_of_their_own():
    shape = (Shape(1, 16, 8, 8),)
    assert row_kind(Row(Conv(16, 16), shape)) == "Conv"
    assert row_kind(Row(Conv(16, 16, 3, groups=16), shape)) == "Conv-grouped"
    row = Row(MB4D(2), shape)
    assert row_kind(row) == "MB4D"
    assert Calibration(1, 0, 5, 1, (1.0,), factors=(("MB4D", 1.2),)).weights()(row) == 1.2


def two_families(generator: np.random.Generator, quiet: int, loud: int):
    """Networks of two families whose errors are of 1 % and of 8 %."""
    sums = generator.uniform(200, 2000, quiet + loud)
    families = ["quiet"] * quiet + ["loud"] * loud
    truth = 1.2 * sums * (1 + generator.normal(0, 1, quiet + loud) * np.repeat([0.01, 0.08], [quiet, loud]))
    return [{"MB4D": float(total)} for total in sums], truth, families


@pytest.mark.parametrize("loud", [3, 6, 15])
def test_intervals_and_bounds_hold_for_a_family_that_is_off_more_than_others(loud):
    generator = np.random.default_rng(2)
    inside, below, marginal = [], [], []
    for _ in range(150):
        kinds, truth, families = two_families(generator, 60, loud)
        fit = calibrate(kinds, truth, families)
        kinds, truth, _ = two_families(generator, 0, 100)
        ratio = truth / predicted(fit, kinds)
        inside.append(np.mean(np.abs(ratio - 1) <= fit.interval_of("loud")))
        below.append(np.mean(ratio <= fit.bound(0.95, "loud")))
        marginal.append(np.mean(np.abs(ratio - 1) <= fit.interval))
    assert np.mean(marginal) < 0.8  # what a family gets from all networks together
    assert np.mean(inside) == pytest.approx(0.9 if loud < 9 else 15 / 16, abs=0.04)
    assert np.mean(below) == pytest.approx(0.95, abs=0.03)


def test_the_interval_of_a_family_by_hand():
    ratios = {"few": (0.96, 1.03), "many": tuple(1 + n / 1000 for n in range(1, 12)), "fine": (1.0,) * 40}
    fit = Calibration(1.0, 0.0, 53, 1.0, tuple(sorted(sum(ratios.values(), ()))), by_family=tuple(ratios.items()))
    assert fit.interval == pytest.approx(0.009)  # the 49th of 53: ceil(0.9 * 54)
    assert fit.interval_of("many") == pytest.approx(0.011)  # the 11th of 11: ceil(0.9 * 12)
    rms = math.sqrt((0.04**2 + 0.03**2) / 2)
    assert fit.interval_of("few") == pytest.approx(2.920 * rms, rel=1e-3)  # Student's t of 2 degrees, 95 %
    assert fit.interval_of("fine") == fit.interval  # never below that of all
    assert fit.interval_of("never seen") == fit.interval_of("few")  # the widest
    assert fit.interval_of(None) == fit.interval
    assert fit.bound(0.9, "few") == pytest.approx(1 + 1.886 * rms, rel=1e-3)  # 90 %, one-sided
    assert fit.bound(0.9, "many") == pytest.approx(1.011)
    assert fit.bound(0.9, "fine") == fit.bound(0.9) == pytest.approx(1.008)
    assert fit.bound(0.9, "never seen") == fit.bound(0.9, "few")


def test_no_family_has_a_bound_below_that_of_all():
    """So a budget below the smallest network's with the bound of all is out of reach of every network."""
    generator = np.random.default_rng(3)
    fit = calibrate(*two_families(generator, 60, 12))
    for confidence in (0.5, 0.8, 0.9, 0.95, 0.98):
        assert all(fit.bound(confidence, name) >= fit.bound(confidence) for name in ("quiet", "loud", "other"))
