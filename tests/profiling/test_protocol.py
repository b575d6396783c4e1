from __future__ import annotations

import math

import numpy as np
import pytest

from nas.profiling.device.journal import Sample
from nas.profiling.device.timing import (
    GATE,
    Noise,
    Settings,
    Times,
    errors_of,
    good,
    kept,
    noise_of,
    over_processes,
    reference_of,
    time_of,
)
from nas.profiling.probes import Formula, Probe
from tests.profiling import FEW
from tests.small import TINY

ROW = FEW[0]
ONE, TWO = Probe((ROW,)), Probe((ROW, ROW))


def quantile(values, share):
    """Linear interpolation between order statistics, by hand."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def steady(us: float, sentinel_us: float = 100.0) -> Sample:
    return Sample(sentinel_us, (us,) * 6)


def test_a_sample_is_a_low_quantile_of_its_calls_behind_the_warm_up():
    sample = Sample(100.0, (1.0, 2.0, 30.0, 10.0, 20.0, 40.0))  # half of the calls only warm
    assert time_of(sample) == pytest.approx(quantile([10, 20, 40], 0.25)) == pytest.approx(15)
    assert time_of(Sample(100.0, (7.0,))) == 7.0


def test_the_reference_is_a_low_quantile_of_all_sentinels():
    sentinels = [100.0, 101.0, 102.0, 140.0, 150.0]
    samples = {0: {"a": [steady(1, s) for s in sentinels[:2]], "b": [steady(1, s) for s in sentinels[2:4]]}}
    samples[1] = {"a": [steady(1, sentinels[4])]}
    assert reference_of(samples) == pytest.approx(quantile(sentinels, 0.1))
    assert math.isnan(reference_of({}))


def test_samples_of_a_slow_spell_are_left_out():
    taken = [steady(10, 100 * GATE), steady(11, 100), steady(99, 100 * GATE + 0.1), steady(99, 140)]
    assert good(taken, 100.0) == 2
    assert sorted(kept(taken, 100.0)) == [10.0, 11.0]


def test_where_all_is_slow_the_least_slow_quarter_is_scaled_back():
    taken = [steady(14.0 + n, 140.0 + 10 * n) for n in range(8)]
    np.testing.assert_allclose(kept(taken, 100.0), [14 * 100 / 140, 15 * 100 / 150])


def test_of_processes_the_median_counts():
    assert over_processes([5.0]) == 5.0
    assert over_processes([6.0, 5.0]) == 5.5
    assert over_processes([9.0, 8.0, 5.0, 7.0, 6.0]) == 7.0


def test_a_chain_gives_its_slope():
    chain = Probe((ROW,) * 4)
    formula = Formula(ROW, ((chain, 1 / 3), (ONE, -1 / 3)))
    timing = Times({0: {chain.key: [steady(47)] * 3, ONE.key: [steady(17)] * 2}}).row(formula)
    assert timing.us == pytest.approx((47 - 17) / 3)
    assert timing.count == 2  # of the probe with the fewest


def test_a_row_with_a_partner_is_what_it_adds():
    formula = Formula(ROW, ((TWO, 1.0), (ONE, -1.0)))
    passes = [(50.0, 20.0), (52.0, 20.0)]
    samples = {n: {TWO.key: [steady(both)] * 3, ONE.key: [steady(one)] * 3} for n, (both, one) in enumerate(passes)}
    timing = Times(samples).row(formula)
    assert timing.us == pytest.approx((50 + 52) / 2 - 20)
    assert timing.spread_us == pytest.approx(32 - 30)


def test_the_error_of_a_difference_is_that_of_its_parts_over_what_is_left():
    long, short = [steady(us) for us in (100.0, 104.0, 108.0)], [steady(us) for us in (90.0, 90.0, 90.0)]
    quartiles = 106.0 - 102.0
    assert errors_of([(long, 0.5), (short, -0.5)], 100.0)[0] == pytest.approx(quartiles / math.sqrt(3) / (102 - 90))
    assert errors_of([(short, 1.0)], 100.0)[0] == 0
    assert errors_of([(short, 1.0), (long, -1.0)], 100.0)[0] == math.inf  # below zero: lost in noise


def test_the_doubt_of_a_difference_comes_from_its_terms():
    long, short = [steady(us) for us in (100.0, 104.0, 108.0)], [steady(us) for us in (90.0, 91.0, 92.0)]
    error, shares = errors_of([(long, 0.5), (short, -0.5)], 100.0)
    assert error == pytest.approx(math.sqrt((4**2 + 1**2) / 3) / (102 - 90.5))
    assert shares == pytest.approx((4**2 / (4**2 + 1**2), 1**2 / (4**2 + 1**2)))
    assert errors_of([(long[:1], 1.0)], 100.0) == (0.0, (0.0,))


def test_noise_is_the_share_of_samples_in_slow_spells():
    sentinels = [100.0] * 6 + [105.0, 120.0, 130.0, 140.0]
    samples = {0: {"a": [steady(1, us) for us in sentinels[:7]], "b": [steady(1, us) for us in sentinels[7:]]}}
    assert noise_of(samples) == Noise(0.3, 1.0)
    assert not noise_of(samples).is_too_much
    assert noise_of(samples, {"b"}) == Noise(1.0, 1.3)
    assert noise_of(samples, {"b"}).is_too_much
    assert str(noise_of(samples)) == "30% of samples in slow spells, reference block 1.00 times its quiet time"
    assert noise_of(samples, quiet_us=50.0) == Noise(1.0, 2.0)  # slow all the time, against an earlier measurement
    assert noise_of(samples, quiet_us=900.0) == Noise(0.3, 1.0)  # quicker than then
    assert noise_of({}) == Noise(0.0, 1.0)


def test_large_graphs_are_called_less_often_than_networks_of_many_kernels():
    network = Probe(arch=next(TINY.archs()))
    assert Settings().least_of(network) > Settings().least_of(ONE)


def test_a_difference_lost_in_noise_is_never_negative():
    formula = Formula(ROW, ((TWO, 1.0), (ONE, -1.0)))
    assert Times({0: {TWO.key: [steady(19)], ONE.key: [steady(20)]}}).row(formula).us == 0.0


def test_a_timing_reports_how_far_processes_lie_apart():
    timing = Times({0: {"a": [steady(10)] * 3}, 1: {"a": [steady(12)] * 4}}).timing("a")
    assert (timing.us, timing.spread_us, timing.count) == (11.0, 2.0, 7)
    alone = Times({0: {"a": [steady(us) for us in (10.0, 11.0, 12.0, 13.0, 14.0)]}}).timing("a")
    assert alone.spread_us == pytest.approx(13 - 11)  # between the quartiles


@pytest.mark.parametrize(("rounds", "enough"), [(1, 1), (3, 2), (25, 13)])
def test_half_of_the_rounds_have_to_be_good_within_four_times_as_many(rounds, enough):
    settings = Settings(rounds=rounds)
    assert (settings.enough, settings.limit) == (enough, 4 * rounds)
