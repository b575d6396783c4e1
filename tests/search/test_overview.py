"""What budgets leave of a space, against lists of every network."""

import numpy as np
import pytest

import nas
from nas.core.arch import calls_of
from nas.core.errors import BudgetError
from nas.core.tracing import macs_of_unit
from nas.search.budgets import Budget
from nas.search.fitting import feasible_set, lattice_of
from nas.search.lattice import sums
from nas.search.limits import Estimator, Survey, resolve
from nas.search.overview import bought
from tests.search.fakes import estimator_at, fake_table, tiny_space

SPACE = tiny_space()
TABLE = fake_table(SPACE)


def estimates(*budgets):
    """Every network of the space with its estimate, and those that fit, smallest latency first."""
    limits = resolve([Budget.parse(text) for text in budgets], Survey(SPACE, 0), TABLE, {})
    estimator = Estimator(TABLE, limits)
    known = {arch: estimator.estimate(arch) for arch in SPACE.archs()}
    kept = [arch for arch in known if not estimator.misfit(known[arch])]
    return known, sorted(kept, key=lambda arch: known[arch].latency.total_us)


@pytest.mark.parametrize("budgets", [("latency_ms<=p30",), ("latency_ms<=p60", "params<=p50"), ()])
def test_counts_and_extremes_agree_with_a_list(budgets):
    found = nas.feasible(SPACE, TABLE, budgets)
    known, kept = estimates(*budgets)
    assert found["archs"] == len(known)
    assert found["fit_at_least"] <= len(kept) <= found["fit_at_most"]
    assert found["share"] == pytest.approx(len(kept) / len(known), rel=0.05)
    assert found["smallest"]["latency_ms"] == pytest.approx(known[kept[0]].latency.total_us / 1000)
    assert found["largest"]["latency_ms"] == pytest.approx(known[kept[-1]].latency.total_us / 1000)
    middle = [known[kept[round(share * (len(kept) - 1))]].latency.total_us / 1000 for share in (0.4, 0.6)]
    assert middle[0] <= found["median"]["latency_ms"] <= middle[1]
    for each, budget in zip(found["budgets"], budgets, strict=True):
        alone = estimates(budget)[1]
        assert each["asked"] == budget
        assert each["share"] == pytest.approx(len(alone) / len(known), rel=0.05)


def test_a_budget_that_leaves_what_the_others_leave_does_not_bind():
    params = [estimate.params for estimate in estimates()[0].values()]
    loose = f"params<={max(params)}"
    found = nas.feasible(SPACE, TABLE, ["latency_ms<=p30", loose, "macs<=p50"])
    binding = {each["asked"]: each["binds"] for each in found["budgets"]}
    whole = set(estimates("latency_ms<=p30", loose, "macs<=p50")[1])
    expected = {
        "latency_ms<=p30": set(estimates(loose, "macs<=p50")[1]) != whole,
        loose: False,
        "macs<=p50": set(estimates("latency_ms<=p30", loose)[1]) != whole,
    }
    assert binding == expected
    assert nas.feasible(SPACE, TABLE, [loose])["budgets"][0]["binds"] is False


def test_two_of_three_budgets_that_contradict_each_other_are_named():
    known, _ = estimates()
    fewest = min(known, key=lambda arch: known[arch].params)
    fastest = min(known, key=lambda arch: known[arch].latency.total_us)
    latency = known[fastest].latency.total_us / 1000 * (1 + 1e-6)
    budgets = [f"latency_ms<={latency!r}", "macs<=1e12", f"params<={known[fewest].params}"]
    assert not estimates(*budgets)[1], "the test needs budgets that contradict each other"
    with pytest.raises(BudgetError, match=r"latency_ms<=\S+ and params<=\S+ contradict each other") as caught:
        nas.feasible(SPACE, TABLE, budgets)
    assert "macs<=1e+12 contradict" not in str(caught.value)
    assert "The nearest, arch" in str(caught.value)


def test_published_networks_that_do_not_fit_come_with_the_nearest_that_does():
    import search_spaces

    space = search_spaces.load("efficientformer")
    found = nas.feasible(space, fake_table(space), ["macs<=2e9"])
    fits = {preset["name"]: not preset["misfit"] for preset in found["presets"]}
    macs = {name: nas.cost_of(arch).macs for name, arch in search_spaces.presets().items() if name in fits}
    assert len(fits) >= 3
    assert fits == {name: count <= 2e9 for name, count in macs.items()}
    assert set(fits.values()) == {True, False}
    for preset in found["presets"]:
        if preset["misfit"]:
            assert preset["nearest"]["macs"] <= 2e9
            now = {name: after for name, (_, after) in preset["nearest"]["changed"].items()}
            assert space.arch(preset["choices"] | now).id == preset["nearest"]["arch"]
        else:
            assert preset["nearest"] is None


def test_what_more_time_buys_in_a_stage_agrees_with_a_list():
    fits = feasible_set(SPACE, estimator_at(SPACE, TABLE, "latency_ms<=p50"))
    lattice, cost = lattice_of(SPACE), TABLE.cost_of_row(SPACE)
    known = {
        arch: (sum(cost(call.row) for call in calls_of(arch)), sum(macs_of_unit(call.row) for call in calls_of(arch)))
        for arch in SPACE.archs()
    }
    paths = fits.draw(np.random.default_rng(0), 12)
    more = 0.1 * sums(fits.sums[0].costs, paths)
    got = bought(fits, paths, fits.sums[0].costs, more, lattice.costs(macs_of_unit))
    expected = np.zeros((len(paths), 4))
    for line, path in enumerate(paths):
        ways = fits.ways(path)
        us, macs = known[lattice.arch(tuple(path))]
        for arch, (other_us, other_macs) in known.items():
            changed = [n for n, way in enumerate(fits.ways(lattice.path_of_arch(arch))) if way != ways[n]]
            if len(changed) == 1 and other_us - us <= more[line] * (1 + 1e-9):
                expected[line, changed[0]] = max(expected[line, changed[0]], other_macs - macs)
    assert got.tolist() == pytest.approx(expected.mean(0).tolist())
    assert (got > 0).any()
