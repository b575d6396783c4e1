from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics

import numpy as np
import pytest
from scipy import stats

import search_spaces
from nas.arch import calls_of
from nas.errors import InputError, MissingLatency
from nas.latency import Entry, Network, Table
from nas.profiling import validation
from nas.profiling.backends.fake import row_us
from nas.profiling.device import this_machine
from nas.profiling.profiler import measure, time_networks
from nas.profiling.protocol import Settings
from nas.profiling.validation import LEAST, Errors, reference_kendall, validate
from tests.profiling import LocalWorker, true_us
from tests.small import fake_table

SPACE = search_spaces.load("efficientformer-32")
QUICK = Settings(rounds=2, passes=1)


def table_off_by(error: float, networks: int = 6, **header: object) -> Table:
    """A table of this machine on the fake runtime, its rows off by about `error`, with networks that it has seen."""
    rng = random.Random(3)
    machine = this_machine()
    values = {"device": machine.slug, "cpu": machine.cpu} | header
    rows = [Entry(row, true_us(row) * rng.uniform(1 - error, 1 + error), 0.1, 5) for row in SPACE.rows()]
    seen = {SPACE.sample(rng) for _ in range(networks)}
    measured = [Network(arch, 6.0 + sum(row_us(call.row) for call in calls_of(arch)), 0.1, 3) for arch in seen]
    return Table(fake_table(SPACE, **values).header, rows, measured)


@pytest.fixture(scope="module")
def sentinel_us() -> float:
    """The reference block on the fake runtime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.profiling.bench.Worker", LocalWorker)
        return measure(SPACE.sample(random.Random(0)), runtime="fake", settings=QUICK).sentinel_us


@pytest.fixture(scope="module")
def checked(sentinel_us):
    """A table with errors and its validation."""
    table = table_off_by(0.3, sentinel_us=sentinel_us)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.profiling.bench.Worker", LocalWorker)
        return table, validate(table, settings=QUICK)


def test_the_networks_are_unseen_distinct_and_measured(checked):
    table, found = checked
    archs = [item.arch for item in found.networks]
    assert len(set(archs)) == len(archs) == LEAST == 12
    assert set(archs).isdisjoint(network.arch for network in table.networks)
    for item in found.networks:
        assert item.arch in SPACE
        assert item.predicted_us == pytest.approx(table.price(calls_of(item.arch)).total_us)
        assert item.measured_us == pytest.approx(sum(true_us(call.row) for call in calls_of(item.arch)), rel=0.01)


def test_the_networks_are_even_in_log_latency(checked):
    table, found = checked
    (low, _), (high, _) = table.extremes(SPACE)
    logs = sorted(math.log(item.predicted_us) for item in found.networks)
    step = math.log(high / low) / (len(logs) - 1)
    for number, value in enumerate(logs):  # none is half a step from its place between the ends of the space
        assert abs(value - math.log(low) - number * step) < step / 2
    assert found.ratio == pytest.approx(high / low, rel=0.3)


def test_the_errors_are_those_by_hand(checked):
    _, found = checked
    guess, truth = [n.predicted_us for n in found.networks], [n.measured_us for n in found.networks]
    off = [(p - m) / m for p, m in zip(guess, truth, strict=True)]
    assert max(map(abs, off)) > 0.01  # else nothing is checked
    errors = found.errors
    assert errors.mape_percent == pytest.approx(100 * statistics.mean(map(abs, off)))
    assert errors.bias_percent == pytest.approx(100 * statistics.mean(off))
    assert errors.within_5 == sum(abs(e) <= 0.05 for e in off) / len(off)
    assert errors.within_10 == sum(abs(e) <= 0.10 for e in off) / len(off)
    assert errors.worst_percent == pytest.approx(100 * max(off, key=abs))
    assert errors.spearman == pytest.approx(stats.spearmanr(guess, truth).statistic)
    assert errors.kendall == pytest.approx(stats.kendalltau(guess, truth).statistic)
    assert found.scale is None  # this machine, in the same state
    assert found.here
    assert abs(found.sentinel_drift) < 0.01


def test_errors_of_numbers_anyone_can_check():
    errors = Errors.of([104.0, 190.0, 345.0, 300.0], [100.0, 200.0, 300.0, 400.0])
    assert errors.mape_percent == pytest.approx((4 + 5 + 15 + 25) / 4)
    assert errors.bias_percent == pytest.approx((4 - 5 + 15 - 25) / 4)
    assert errors.within_10 == 0.5
    assert errors.worst_percent == pytest.approx(-25)
    assert errors.kendall == pytest.approx((5 - 1) / 6)  # one of six pairs is the wrong way round
    assert errors.spearman == pytest.approx(1 - 6 * (1 + 1) / (4 * 15))
    with pytest.raises(InputError, match="at least two networks, got 1"):
        Errors.of([1.0], [1.0])


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


def test_on_another_machine_errors_are_also_given_after_one_scale(local, sentinel_us, monkeypatch):
    timed = []

    def spy(archs, *args, **kwargs):
        timed.append(list(archs))
        return time_networks(archs, *args, **kwargs)

    monkeypatch.setattr(validation, "time_networks", spy)
    honest = table_off_by(0.0, cpu="another cpu", device="elsewhere", sentinel_us=sentinel_us)
    slower = [dataclasses.replace(entry, us=1.5 * entry.us) for entry in honest.entries]
    networks = [dataclasses.replace(network, us=1.5 * network.us) for network in honest.networks]
    found = validate(Table(honest.header, slower, networks), settings=QUICK)
    assert not found.here
    assert "NOT THIS MACHINE" in found.text()
    assert found.errors.mape_percent == pytest.approx(50, abs=1)
    assert found.scale == pytest.approx(1 / 1.5, rel=0.01)
    assert found.scaled.mape_percent < 1
    test = {item.arch for item in found.networks}
    (together,) = timed  # in the same rounds
    refit = set(together) - test
    assert len(refit) == 5
    assert test < set(together)
    assert refit.isdisjoint(network.arch for network in networks)


def test_a_drifted_sentinel_is_told(local, sentinel_us):
    found = validate(table_off_by(0.0, sentinel_us=sentinel_us / 1.1), settings=QUICK)
    assert found.here
    assert found.sentinel_drift == pytest.approx(0.1, abs=0.01)
    assert "the reference block takes +10" in found.text() or "the reference block takes +9" in found.text()
    assert found.scaled is not None


def test_facts_hold_what_the_text_says(checked):
    _, found = checked
    facts = found.facts()
    assert len(facts["networks"]) == LEAST
    assert facts["mape_percent"] == found.errors.mape_percent
    assert facts["max_min_ratio"] == found.networks[-1].measured_us / found.networks[0].measured_us
    assert facts["networks"][0]["measured_ms"] == found.networks[0].measured_us / 1000
    assert f"MAPE {found.errors.mape_percent:.1f} %" in found.text()


def test_too_few_networks_and_missing_rows_are_refused(local, sentinel_us):
    table = table_off_by(0.0, sentinel_us=sentinel_us)
    with pytest.raises(InputError, match="archs: expected at least 12, got 11"):
        validate(table, archs=11)
    with pytest.raises(MissingLatency, match="lacks 1 of"):
        validate(Table(table.header, table.entries[1:]))
