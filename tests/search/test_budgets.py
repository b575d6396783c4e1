"""Budgets and limits, checked against all archs of a small space one by one."""

import numpy as np
import pytest

from nas.arch import calls_of
from nas.building import cost_of
from nas.errors import BudgetError, MissingLatency
from nas.latency import Table
from nas.search.budgets import Budget
from nas.search.limits import Estimator, Limit, Survey, resolve, smallest
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
    least, arch = smallest(SPACE, metric, table)
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
    assert survey.share_that_fits(Estimator(table, (limit,))) == pytest.approx(0.4, abs=0.03)


def test_a_quantile_is_the_same_every_time(table):
    budget = Budget.parse("latency_ms<=p40")
    first, again = (resolve([budget], Survey(SPACE, 5, 200), table, {}) for _ in range(2))
    assert first == again
    assert first != resolve([budget], Survey(SPACE, 6, 200), table, {})


def test_a_budget_of_the_smallest_arch_is_met_by_it(table):
    least, arch = smallest(SPACE, "latency_ms", table)
    estimator = estimator_at(SPACE, table, f"latency_ms<={least!r}")
    assert estimator.misfit(estimator.estimate(arch)) == ""


@pytest.mark.parametrize("metric", ["latency_ms", "params", "macs"])
def test_an_unreachable_budget_names_the_smallest_arch_and_a_budget_that_works(metric, table):
    least, arch = smallest(SPACE, metric, table)
    with pytest.raises(BudgetError) as caught:
        estimator_at(SPACE, table, f"{metric}<={0.99 * least}")
    text = str(caught.value)
    assert arch.id in text
    assert "stage1.width=16" in text
    offered = text.rpartition("Ask for ")[2].removesuffix(" or more.")
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
