from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from nas.core.errors import InputError
from nas.tables.card import Checked, Errors, card_of, coverage_band, reference_kendall
from search_spaces import efficientformer as ef

ARCHS = [ef.SMALL.sample(random.Random(seed)) for seed in range(4)]


def checked(number: int, family: str, predicted: float, measured: float, off: float | None = None) -> Checked:
    low, high = (None, None) if off is None else (predicted * (1 - off), predicted * (1 + off))
    return Checked(ARCHS[number], family, predicted, low, high, measured, 0.02 * measured)


def test_errors_of_numbers_anyone_can_check():
    errors = Errors.of([104.0, 190.0, 345.0, 300.0], [100.0, 200.0, 300.0, 400.0])
    assert errors.mape_percent == pytest.approx((4 + 5 + 15 + 25) / 4)
    assert errors.bias_percent == pytest.approx((4 - 5 + 15 - 25) / 4)
    assert errors.within_5_percent == 50
    assert errors.within_10_percent == 50
    assert errors.worst_percent == pytest.approx(-25)
    assert errors.kendall == pytest.approx((5 - 1) / 6)  # one of six pairs is the wrong way round
    assert errors.spearman == pytest.approx(1 - 6 * (1 + 1) / (4 * 15))
    with pytest.raises(InputError, match="at least two networks, got 1"):
        Errors.of([1.0], [1.0])


def test_an_error_of_exactly_five_percent_is_within_five():
    errors = Errors.of([105.0, 220.0, 89.0], [100.0, 200.0, 100.0])
    assert errors.within_5_percent == pytest.approx(100 / 3)
    assert errors.within_10_percent == pytest.approx(200 / 3)


def test_the_reference_kendall_is_one_without_error_and_falls_with_it():
    truth = np.geomspace(100, 200, 12)
    taus = [reference_kendall(truth, mape) for mape in (0.0, 0.02, 0.05, 0.1, 0.3)]
    assert taus[0] == pytest.approx(1)
    assert all(after < before for before, after in itertools.pairwise(taus))


def test_the_reference_kendall_of_two_networks_is_known():
    # truths 1 and r are swapped when 1 + e1 > r (1 + e2), with e of mean absolute size m: normal with m sqrt(pi / 2)
    mape, ratio = 0.1, 1.1
    sigma = mape * math.sqrt(math.pi / 2)
    swapped = stats.norm.cdf(-(ratio - 1) / (sigma * math.sqrt(1 + ratio**2)))
    assert reference_kendall(np.array([1.0, ratio]), mape) == pytest.approx(1 - 2 * swapped, abs=0.08)


def test_the_coverage_band_is_what_draws_of_exchangeable_errors_give():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(4000):
        calibration, test = np.sort(generator.random(40)), generator.random(100)
        shares.append(100 * np.mean(test <= calibration[36]))  # the 37th: ceil(0.9 * 41)
    low, high = coverage_band(40, 100)
    assert (low, high) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=1.01)
    assert (low, high) == pytest.approx((79, 98), abs=1)  # the figures of the goal


def test_a_card_groups_its_networks_and_names_the_worst():
    card = card_of(
        [
            checked(0, "a", 110, 100, 0.2),
            checked(1, "a", 180, 200, 0.2),
            checked(2, "b", 150, 300, 0.2),
            checked(3, "b", 400, 400, 0.2),
        ],
        40,
        (3.0, None),
    )
    assert card.families == (
        ("a", 2, pytest.approx(10), pytest.approx(0)),
        ("b", 2, pytest.approx(25), pytest.approx(-25)),
    )
    assert card.family_bias_percent == pytest.approx(25)
    assert card.worst.arch == ARCHS[2]
    assert card.coverage_percent == 75
    assert card.coverage_band == coverage_band(40, 4)
    assert card.ratio == 4
    facts = json.loads(json.dumps(card.facts()))
    assert facts["worst"]["arch"] == ARCHS[2].id
    assert facts["worst"]["error_percent"] == pytest.approx(-50)
    assert [network["measured_ms"] for network in facts["networks"]] == [0.1, 0.2, 0.3, 0.4]
    assert facts["repeatability"] == {
        "rows_from_0.1_ms_p95_percent": 3.0,
        "rows_from_0.5_ms_p95_percent": None,
        "networks_p95_percent": pytest.approx(2),
    }
    assert f"worst -50.0 % ({ARCHS[2].id}), 90 % interval covers 75 %" in str(card)


def test_a_card_without_intervals_claims_no_coverage():
    card = card_of([checked(0, "a", 1, 1), checked(1, "a", 2, 2)], 0, (None, None))
    assert (card.coverage_percent, card.coverage_band) == (None, None)
    assert card.facts()["coverage_percent"] is None
    assert "no interval" in str(card)
