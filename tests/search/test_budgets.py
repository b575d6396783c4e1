"""Budgets and limits, checked against all archs of a small space one by one."""

from dataclasses import replace

import numpy as np
import pytest

from nas.core.arch import calls_of
from nas.core.errors import BudgetError, MissingLatency, TableError
from nas.metrics import load_metric
from nas.networks.building import cost_of
from nas.search.budgets import Budget
from nas.search.fitting import feasible_set
from nas.search.limits import Estimator, Limit, Survey, resolve
from nas.tables.table import NetworkEntry, Table
from tests.search.fakes import estimator_at, fake_table, tiny_space

SPACE = tiny_space()


@pytest.fixture(scope="module")
def table():
    return fake_table(SPACE)


@pytest.fixture(scope="module")
def archs():
    return list(SPACE.archs())


def costs(metric, archs, table):
    if metric == "latency_ms":
        return [table.price(calls_of(arch)).total_us / 1000 for arch in archs]
    return [getattr(cost_of(arch), metric) for arch in archs]


@pytest.mark.parametrize(
    ("text", "metric", "limit", "quantile", "table"),
    [
        ("latency_ms<=5", "latency_ms", 5.0, None, None),
        ("latency_ms <= p40", "latency_ms", None, 0.4, None),
        (" params<=3e6 ", "params", 3e6, None, None),
        ("macs<=p12.5", "macs", None, 0.125, None),
        ("latency_ms[my tables/x.csv]<=.5", "latency_ms", 0.5, None, "my tables/x.csv"),
    ],
)
def test_a_budget_is_read(text, metric, limit, quantile, table):
    budget = Budget.parse(text)
    assert (budget.metric, budget.limit, budget.quantile, budget.table) == (metric, limit, quantile, table)
    assert Budget.parse(budget.asked) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast", "expected a bound"),
        ("latency_ms<5", "expected a bound"),
        ("latency_ms<=", "expected a bound"),
        ("latency_ms<=abc", "expected a bound"),
        ("latency_ms<=-1", "expected a bound"),
        ("latency_ms<=0", "expected a bound"),
        ("latency_ms<=nan", "expected a bound"),
        ("latency_ms<=inf", "expected a bound"),
        ("latency_ms<=p0", "between p0 and p100"),
        ("latency_ms<=p100", "between p0 and p100"),
        ("latency_ms<=pmax", "between p0 and p100"),
        ("latncy_ms<=5", "did you mean 'latency_ms'"),
        ("params[x.csv]<=5", "does not depend on a table"),
    ],
)
def test_what_is_no_budget_is_refused(text, says):
    with pytest.raises(BudgetError, match=says):
        Budget.parse(text)


@pytest.mark.parametrize("metric", ["latency_ms", "params", "macs"])
def test_the_smallest_cost_is_that_of_brute_force(metric, archs, table):
    least, arch = load_metric(metric).smallest(SPACE, table)
    assert least == pytest.approx(min(costs(metric, archs, table)))
    assert costs(metric, [arch], table) == [pytest.approx(least)]


@pytest.mark.parametrize("metric", ["latency_ms", "params", "macs"])
def test_a_sample_costs_what_its_archs_cost_one_by_one(metric, table):
    survey = Survey(SPACE, 3, 50)
    assert survey.costs(metric, table) == pytest.approx(costs(metric, survey.archs, table))


@pytest.mark.parametrize("metric", ["latency_ms", "params", "macs"])
def test_a_quantile_lets_its_share_of_the_space_through(metric, table):
    survey = Survey(SPACE, 0)
    (limit,) = resolve([Budget.parse(f"{metric}<=p40")], survey, table, {})
    assert np.mean(np.array(costs(metric, survey.archs, table)) <= limit.limit) == pytest.approx(0.4, abs=0.03)
    assert limit.quantile_of == "4000 random archs of efficientformer-32, seed 0"
    fits = feasible_set(SPACE, Estimator(table, (limit,)))
    assert fits.about / fits.size_of_all() == pytest.approx(
        np.mean(np.array(costs(metric, list(SPACE.archs()), table)) <= limit.limit), abs=1e-3
    )


def test_a_quantile_is_the_same_every_time(table):
    budget = Budget.parse("latency_ms<=p40")
    first, again = (resolve([budget], Survey(SPACE, 5, 200), table, {}) for _ in range(2))
    assert first == again
    assert first != resolve([budget], Survey(SPACE, 6, 200), table, {})


def test_a_budget_of_the_smallest_arch_is_met_by_it(table):
    least, arch = load_metric("latency_ms").smallest(SPACE, table)
    estimator = estimator_at(SPACE, table, f"latency_ms<={least!r}")
    assert estimator.misfit(estimator.estimate(arch)) == ""


@pytest.mark.parametrize("metric", ["latency_ms", "params", "macs"])
def test_an_unreachable_budget_names_the_smallest_arch_and_a_budget_that_works(metric, table):
    least, arch = load_metric(metric).smallest(SPACE, table)
    with pytest.raises(BudgetError) as caught:
        estimator_at(SPACE, table, f"{metric}<={0.99 * least}")
    text = str(caught.value)
    assert arch.id in text
    assert "stage1.width=16" in text
    offered = text.rpartition("Ask for ")[2].removesuffix(" or more")
    assert least <= estimator_at(SPACE, table, offered).limits[0].limit < 1.01 * least


def test_an_arch_fits_when_every_limit_is_met(archs, table):
    slower = fake_table(SPACE, sentinel_us=2.0)
    estimator = Estimator(
        table,
        (
            Limit("latency_ms", 0.65, "a", None, None),
            Limit("latency_ms", 0.6, "b", "other.csv", None),
            Limit("params", 200_000, "c", None, None),
        ),
        {"other.csv": Table(slower.header, slower.entries)},
    )
    verdicts = set()
    for arch in archs:
        estimate = estimator.estimate(arch)
        used = [
            table.price(calls_of(arch)).total_us / 1000,
            slower.raw_us(calls_of(arch)) / 1000,
            cost_of(arch).params,
        ]
        assert estimate.used == pytest.approx(used)
        fits = used[0] <= 0.65 and used[1] <= 0.6 and used[2] <= 200_000
        assert (estimator.misfit(estimate) == "") == fits
        assert all(excess <= 0 for excess in estimator.constraints(estimate).values()) == fits
        verdicts.add(fits)
    assert verdicts == {True, False}


def test_a_table_without_rows_of_the_space_is_refused(table):
    with pytest.raises(MissingLatency):
        estimator_at(SPACE, Table(table.header, table.entries[1:]), "latency_ms<=p40")


def test_the_median_network_has_as_many_faster_as_slower(table):
    survey = Survey(SPACE, 0, 401)
    median = table.price(calls_of(survey.median(table))).total_us / 1000
    latencies = survey.costs("latency_ms", table)
    assert np.sum(latencies < median - 1e-9) <= 200 <= np.sum(latencies <= median + 1e-9)


# confidence and memory


def noisy_table(count: int) -> Table:
    """A table whose networks take 1.02 to 1.18 times their rows, and 1 kB for each parameter."""
    plain = fake_table(SPACE, networks=1)
    archs = list(SPACE.archs())[:count]
    factors = np.linspace(1.02, 1.18, len(archs))
    networks = [
        NetworkEntry(arch, plain.raw_us(calls_of(arch)) * factor, 0.1, 9, 1000 * cost_of(arch).params)
        for arch, factor in zip(archs, np.random.default_rng(0).permutation(factors), strict=True)
    ]
    return Table(plain.header, plain.entries, networks)


def test_a_confidence_is_read_and_kept():
    budget = Budget.parse("latency_ms[x.csv]<=5@0.95")
    assert (budget.limit, budget.confidence, budget.table) == (5.0, 0.95, "x.csv")
    assert budget.asked == "latency_ms[x.csv]<=5 @ 0.95"
    assert Budget.parse(budget.asked) == budget
    assert Budget.parse("latency_ms<=p40 @ .9").quantile == 0.4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("latency_ms<=5 @ 1", "expected a confidence of at least 0.5 and below 1, got '1'"),
        ("latency_ms<=5 @ 95", "expected a confidence"),
        ("latency_ms<=5 @ high", "expected a confidence"),
        ("latency_ms<=5 @", "expected a bound"),
        ("params<=5 @ 0.95", "has no confidence"),
        ("memory_mb<=5 @ 0.95", "has no confidence"),
    ],
)
def test_what_is_no_confidence_is_refused(text, says):
    with pytest.raises(BudgetError, match=says):
        Budget.parse(text)


def test_a_limit_with_confidence_applies_to_the_upper_bound(archs):
    table = noisy_table(48)
    factor = table.calibrations[SPACE.input_shape].bound(0.95)
    assert 1.03 < factor < 1.1
    bounds = [factor * us for us in costs("latency_ms", archs, table)]
    limit = float(np.median(bounds))
    estimator = estimator_at(SPACE, table, f"latency_ms<={limit!r} @ 0.95", f"latency_ms<={limit!r}")
    fits = [estimator.estimate(arch).used for arch in archs]
    assert fits == [pytest.approx((bound, bound / factor)) for bound in bounds]
    allowed = [estimator.constraints(estimator.estimate(arch)) for arch in archs]
    sure = [each[f"latency_ms<={limit!r} @ 0.95"] <= 0 for each in allowed]
    plain = [each[f"latency_ms<={limit!r}"] <= 0 for each in allowed]
    assert sum(sure) == sum(bound <= limit for bound in bounds) < sum(plain)
    assert feasible_set(SPACE, estimator).about == pytest.approx(sum(sure), rel=0.05)


def test_a_quantile_with_confidence_is_one_of_predictions():
    table, survey = noisy_table(48), Survey(SPACE, 0, 200)
    sure, plain = (resolve([Budget.parse(f"latency_ms<=p40{end}")], survey, table, {})[0] for end in (" @ 0.9", ""))
    assert sure.limit == plain.limit
    fitting = [feasible_set(SPACE, Estimator(table, (limit,))).about for limit in (sure, plain)]
    assert fitting[0] < fitting[1]


def test_rows_that_were_predicted_widen_the_bound(archs):
    table = noisy_table(48)
    entries = [replace(entry, source="predicted", spread_us=5.0) for entry in table.entries]
    doubtful = Table(table.header, entries, table.networks)
    for arch in archs[:5]:
        calls = calls_of(arch)
        uses = np.array([calls.count(call) for call in dict.fromkeys(calls)])
        counts: dict = {}
        for call in calls:
            counts[call.row] = counts.get(call.row, 0) + 1
        slope = doubtful.calibrations[SPACE.input_shape].scale
        sigma = slope * 5.0 * np.sqrt(sum(count**2 for count in counts.values()))
        assert uses.sum() == len(calls)
        extra = doubtful.bound_us(calls, 0.95) - table.bound_us(calls, 0.95)
        assert extra == pytest.approx(1.645 * sigma, rel=1e-3)


def test_too_few_calibration_networks_for_a_confidence_are_an_error_with_the_command():
    with pytest.raises(
        BudgetError, match=r"confidence of 0.95 needs 40 calibration networks .*has 12; .*--networks 40"
    ):
        estimator_at(SPACE, fake_table(SPACE), "latency_ms<=5 @ 0.95")
    with pytest.raises(BudgetError, match=r"confidence of 0.99 needs 99 calibration networks .*has 48"):
        estimator_at(SPACE, noisy_table(48), "latency_ms<=5 @ 0.99")


def test_an_unreachable_budget_with_confidence_offers_one_that_works():
    table = noisy_table(48)
    least, arch = load_metric("latency_ms").smallest(SPACE, table)
    with pytest.raises(BudgetError, match="with 95 % confidence") as caught:
        estimator_at(SPACE, table, f"latency_ms<={least * 1.001} @ 0.95")
    offered = str(caught.value).rpartition("Ask for ")[2].removesuffix(" or more")
    estimator = estimator_at(SPACE, table, offered)
    assert estimator.misfit(estimator.estimate(arch)) == ""


def test_a_memory_budget_is_hard(archs):
    table = noisy_table(48)
    limit = float(np.median([cost_of(arch).params for arch in archs])) / 1000
    estimator = estimator_at(SPACE, table, f"memory_mb<={limit}")
    for arch in archs:
        estimate = estimator.estimate(arch)
        assert estimate.memory_bytes == pytest.approx(1000 * cost_of(arch).params, rel=0.01)
        assert (estimator.misfit(estimate) == "") == (estimate.memory_bytes <= 1e6 * limit)
    with pytest.raises(BudgetError, match=r"which takes [0-9.]+ MB by table"):
        estimator_at(SPACE, table, "memory_mb<=0.001")
    with pytest.raises(TableError, match="0 networks with measured memory, a prediction needs 5"):
        estimator_at(SPACE, fake_table(SPACE), "memory_mb<=50")
    assert estimator_at(SPACE, fake_table(SPACE)).estimate(archs[0]).memory_bytes is None
