"""The feasible set against brute force: spaces small enough to list every network."""

import dataclasses
import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import search_spaces
from nas.core.arch import calls_of
from nas.core.errors import BudgetError, InputError
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.search import feasible
from nas.search.budgets import Budget
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import feasible_set, lattice_of
from nas.search.lattice import ArchLattice, ListLattice, sums
from nas.search.limits import Estimator, Survey, resolve
from nas.tables.table import Table
from tests.search.fakes import estimator_at, fake_table, tiny_space
from tests.small import TINY

SPACES = {"small": TINY, "tiny": tiny_space()}


@pytest.fixture(params=sorted(SPACES))
def space(request):
    return SPACES[request.param]


def truth(space, table, cost=None):
    """Every arch with its sum of rows."""
    cost = cost or table.cost_of_row(space)
    return {arch: sum(cost(call.row) for call in calls_of(arch)) for arch in space.archs()}


def limited(space, share, more=()):
    """A feasible set of that share of the space by latency, and its archs by brute force."""
    table = fake_table(space)
    known = truth(space, table)
    limit = float(np.quantile(list(known.values()), share)) * (1 + 1e-12)
    lattice = ArchLattice(space)
    items = [Sum("latency", lattice.costs(table.cost_of_row(space)), limit)]
    kept = {arch for arch, total in known.items() if total <= limit}
    for name, cost, part in more:
        other = truth(space, table, cost)
        bound = float(np.quantile([other[arch] for arch in kept], part)) * (1 + 1e-12)
        items.append(Sum(name, lattice.costs(cost), bound))
        kept = {arch for arch in kept if other[arch] <= bound}
    return FeasibleSet(lattice, items), kept


TWO = (("params", params_of_unit, 0.5),)
THREE = (*TWO, ("macs", macs_of_unit, 0.5))


def test_paths_are_the_archs_of_the_space(space):
    lattice = ArchLattice(space)
    paths = [lattice.path_of_arch(arch) for arch in space.archs()]
    assert len(set(paths)) == len(paths) == space.count()
    assert [lattice.arch(path) for path in paths] == list(space.archs())
    assert [lattice.path_of(lattice.params_of(path)) for path in paths[:20]] == paths[:20]


LISTING_OFF = [0, feasible.LISTED]


@pytest.mark.parametrize("listed", LISTING_OFF)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 1.0])
def test_counts_agree_with_a_list(space, share, listed, monkeypatch):
    monkeypatch.setattr(feasible, "LISTED", listed)
    fits, kept = limited(space, share)
    assert fits.count() == (len(kept), len(kept))
    assert fits.about == len(kept)
    assert fits.size_of_all() == space.count()


@pytest.mark.parametrize("listed", LISTING_OFF)
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_counts_of_two_budgets_agree_with_a_list(space, share, listed, monkeypatch):
    monkeypatch.setattr(feasible, "LISTED", listed)
    fits, kept = limited(space, share, TWO)
    assert fits.count() == (len(kept), len(kept))


def test_counts_of_three_budgets_agree_with_a_list_or_bound_it(space, monkeypatch):
    fits, kept = limited(space, 0.6, THREE)
    assert fits.count() == (len(kept), len(kept))
    monkeypatch.setattr(feasible, "LISTED", 0)
    least, most = limited(space, 0.6, THREE)[0].count()
    assert least <= len(kept) <= most


@pytest.mark.parametrize("more", [(), TWO, THREE])
def test_counts_that_cannot_be_exact_bound_the_truth(space, more, monkeypatch):
    monkeypatch.setattr(feasible, "LISTED", 0)
    monkeypatch.setattr(feasible, "PAIRS", 0)
    fits, kept = limited(space, 0.6, more)
    least, most = fits.count()
    assert least <= len(kept) <= most
    assert fits.about == pytest.approx(len(kept), rel=0.1)


@pytest.mark.parametrize("listed", LISTING_OFF)
@pytest.mark.parametrize("more", [(), TWO, THREE])
def test_draws_are_even_over_the_networks_that_fit(more, listed, monkeypatch):
    monkeypatch.setattr(feasible, "LISTED", listed)
    fits, kept = limited(TINY, 0.3, more)
    drawn = fits.draw(np.random.default_rng(3), 20_000)
    paths, counts = np.unique(drawn, axis=0, return_counts=True)
    archs = [fits.lattice.arch(tuple(path)) for path in paths]
    assert set(archs) == kept  # none lost to the rounding of bins
    expected = 20_000 / len(kept)
    square = ((counts - expected) ** 2).sum() / expected + expected * (len(kept) - len(counts))
    freedom = len(kept) - 1
    assert square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations of chi-square


@pytest.mark.parametrize("more", [(), TWO, THREE])
def test_the_best_sums_of_scores_agree_with_a_list(space, more):
    fits, kept = limited(space, 0.4, more)
    rng = np.random.default_rng(0)
    for _ in range(5):
        scores = dict(zip(space.rows(), rng.normal(size=len(space.rows())), strict=True))
        found = fits.best(fits.lattice.costs(scores.__getitem__), 5)
        got = [sum(scores[call.row] for call in calls_of(fits.lattice.arch(path))) for path in found]
        all_sums = sorted((sum(scores[call.row] for call in calls_of(arch)) for arch in kept), reverse=True)
        assert got == pytest.approx(all_sums[:5])
        left = fits.best(fits.lattice.costs(scores.__getitem__), 1, exclude=set(found[:2]))
        assert left == found[2:3]


def test_smallest_and_largest_agree_with_a_list(space):
    fits, kept = limited(space, 0.4)
    known = truth(space, fake_table(space))
    assert known[fits.lattice.arch(fits.smallest())] == pytest.approx(min(known[arch] for arch in kept))
    assert known[fits.lattice.arch(fits.largest())] == pytest.approx(max(known[arch] for arch in kept))


def test_an_exhausted_set_has_no_further_best(space):
    fits, kept = limited(space, 0.1)
    zeros = [np.zeros(len(layer.way)) for layer in fits.layers]
    everything = fits.best(zeros, len(kept) + 5)
    assert {fits.lattice.arch(path) for path in everything} == kept
    assert fits.best(zeros, 1, set(everything)) == []


def test_neighbours_and_crossings_fit_and_nearest_is_near(space):
    fits, kept = limited(space, 0.5)
    rng = np.random.default_rng(0)
    some = [tuple(path) for path in fits.draw(rng, 10)]
    for one, two in itertools.pairwise(some):
        near = fits.neighbours(one, rng, 20)
        assert near
        assert one not in near
        assert {fits.lattice.arch(path) for path in near} <= kept
        crossed = fits.crossed(one, two, rng)
        assert crossed is None or fits.lattice.arch(crossed) in kept
        assert fits.nearest(one) == one
    outside = next(arch for arch in space.archs() if arch not in kept)
    path = fits.lattice.path_of_arch(outside)
    ways = fits.ways(path)

    def far(arch):
        other = fits.ways(fits.lattice.path_of_arch(arch))
        return sum(layer.distances(layer.codes[a])[b] for layer, a, b in zip(fits.layers, ways, other, strict=True))

    assert far(fits.lattice.arch(fits.nearest(path))) == pytest.approx(min(map(far, kept)))


def test_limits_become_sums_that_agree_with_the_estimator():
    space = tiny_space()
    table = fake_table(space)
    estimator = estimator_at(space, table, "latency_ms<=p50", "params<=p70", "macs<=p80")
    fits = feasible_set(space, estimator)
    for arch in space.archs():
        assert fits.fits(fits.lattice.path_of_arch(arch)) == (estimator.misfit(estimator.estimate(arch)) == "")


def test_a_confidence_is_kept_and_memory_checked():
    space = tiny_space()
    table = fake_table(space, networks=44)
    estimator = estimator_at(space, table, "latency_ms<=p50 @ 0.9")
    fits = feasible_set(space, estimator)
    kept = [arch for arch in space.archs() if not estimator.misfit(estimator.estimate(arch))]
    assert {fits.lattice.arch(tuple(path)) for path in fits.draw(np.random.default_rng(0), 500)} <= set(kept)
    assert fits.count()[1] >= len(kept)


def test_budgets_that_contradict_each_other_are_refused_with_the_nearest_network():
    space = tiny_space()
    table = fake_table(space)
    params, latency = truth(space, table, params_of_unit), truth(space, table)
    smallest = min(params.values())
    of_smallest = min(latency[arch] for arch in params if params[arch] <= smallest * 1.01)
    if of_smallest <= min(latency.values()) * 1.001:
        pytest.skip("the smallest network is the fastest")
    budgets = [f"params<={smallest * 1.01}", f"latency_ms<={min(latency.values()) * 1.1211 / 1000}"]
    with pytest.raises(BudgetError, match=r"together.*The nearest, arch .*Ask for"):
        feasible_set(space, estimator_at(space, table, *budgets))


def test_tables_of_counts_are_kept_for_the_next_process(tmp_path):
    space = tiny_space()
    table = fake_table(space)
    one = feasible_set(space, estimator_at(space, table, "latency_ms<=p50"), tmp_path)
    assert not list(tmp_path.iterdir())
    one.keep(tmp_path)
    (file,) = tmp_path.iterdir()
    again = feasible_set(space, estimator_at(space, table, "latency_ms<=p50"), tmp_path)
    kept = again._kept(one.tracked, False, feasible.BINS[0])
    assert all(map(np.array_equal, kept, one._counts(one.tracked)))
    other = feasible_set(space, estimator_at(space, table, "latency_ms<=p20"), tmp_path)
    assert other._kept(other.tracked, False, feasible.BINS[0]) is None
    slower = Table(table.header, [dataclasses.replace(each, us=2 * each.us) for each in table.entries], table.networks)
    changed = feasible_set(space, estimator_at(space, slower, "latency_ms<=p50"), tmp_path)
    assert changed._kept(changed.tracked, False, feasible.BINS[0]) is None
    other.keep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] != [file.name]  # and only that of the set that is searched
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"])
def test_a_damaged_table_of_counts_is_made_again(tmp_path, content):
    space = tiny_space()
    table = fake_table(space)
    one = feasible_set(space, estimator_at(space, table, "latency_ms<=p50"))
    one.keep(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    again = feasible_set(space, estimator_at(space, table, "latency_ms<=p50"), tmp_path)
    assert again.draw(np.random.default_rng(0), 20).tolist() == one.draw(np.random.default_rng(0), 20).tolist()


def test_the_only_network_that_keeps_three_budgets_is_found(monkeypatch):
    """Draws of what keeps one of them would hardly ever meet it."""
    table = fake_table(TINY)
    costs = [table.cost_of_row(TINY), params_of_unit, lambda row: 1e9 / (1 + macs_of_unit(row))]
    known = [truth(TINY, table, cost) for cost in costs]
    arch = next(arch for arch in known[0] if sum(all(v[other] <= v[arch] for v in known) for other in known[0]) == 1)
    lattice = ArchLattice(TINY)
    items = [
        Sum(str(n), lattice.costs(cost), value[arch] * (1 + 1e-9))
        for n, (cost, value) in enumerate(zip(costs, known, strict=True))
    ]
    for listed in LISTING_OFF:
        monkeypatch.setattr(feasible, "LISTED", listed)
        fits = FeasibleSet(lattice, items)
        assert not fits.is_empty
        assert lattice.arch(tuple(fits.draw(np.random.default_rng(0))[0])) == arch


def test_a_search_that_is_cut_short_still_gives_good_candidates_that_fit(space, monkeypatch):
    fits, kept = limited(space, 0.5, TWO)
    scores = fits.lattice.costs(macs_of_unit)
    monkeypatch.setattr(feasible, "EXPANSIONS", 1)
    found = fits.best(scores, 5)
    assert found
    assert {fits.lattice.arch(path) for path in found} <= kept
    totals = sums(scores, np.array(found)).tolist()
    assert totals == sorted(totals, reverse=True)
    every = [sum(macs_of_unit(call.row) for call in calls_of(arch)) for arch in kept]
    assert totals[0] >= np.quantile(every, 0.8)


def test_a_budget_of_each_of_two_tables_is_kept():
    space = tiny_space()
    phone, laptop = fake_table(space), fake_table(space, networks=12)
    scaled = [dataclasses.replace(entry, us=entry.us * (1 + n % 7)) for n, entry in enumerate(laptop.entries)]
    laptop = Table(laptop.header, scaled, laptop.networks)
    tables = {"laptop.csv": laptop}
    asked = [Budget.parse(text) for text in ("latency_ms<=p50", "latency_ms[laptop.csv]<=p40")]
    estimator = Estimator(phone, resolve(asked, Survey(space, 0), phone, tables), tables)
    fits = feasible_set(space, estimator)
    kept = {arch for arch in space.archs() if not estimator.misfit(estimator.estimate(arch))}
    one = {arch for arch in space.archs() if phone.price(calls_of(arch)).total_us / 1000 <= estimator.limits[0].limit}
    assert kept < one
    assert fits.count() == (len(kept), len(kept))
    assert {fits.lattice.arch(tuple(path)) for path in fits.draw(np.random.default_rng(0), 5000)} <= kept


def test_counts_do_not_overflow():
    """Sixty layers of three steps: 3 to the power of 60 candidates, of which a third fits by symmetry of the first."""
    from nas.search.lattice import Layer

    layer = Layer(np.array([0, 3]), np.zeros(3, int), np.arange(3), ("v",), np.arange(3)[:, None], ((0, 1, 2),))
    costs = [np.array([0.0, 0.0, 0.0]) for _ in range(59)] + [np.array([0.0, 5.0, 9.0])]
    fits = FeasibleSet(SimpleNamespace(space=None, layers=[layer] * 60), [Sum("cost", costs, 1.0)])
    assert fits.size_of_all() == 3**60
    assert fits.count() == pytest.approx((3**59, 3**59))
    assert fits.draw(np.random.default_rng(0), 10).shape == (10, 60)


def test_a_list_of_candidates_is_a_set_too():
    params = [{"a": a, "b": b} for a in range(5) for b in ("x", "y")]
    lattice = ListLattice(params)
    cost = [np.array([float(item["a"]) for item in params])]
    fits = FeasibleSet(lattice, [Sum("a", cost, 2.0)])
    assert fits.count() == (6, 6)
    drawn = {tuple(path) for path in fits.draw(np.random.default_rng(0), 200)}
    assert {lattice.params_of(path)["a"] for path in drawn} == {0, 1, 2}
    near = fits.nearest(lattice.path_of({"a": 4, "b": "y"}))
    assert lattice.params_of(near) == {"a": 2, "b": "y"}
    with pytest.raises(InputError, match="no candidate"):
        lattice.path_of({"a": 7, "b": "x"})


def test_the_lattice_of_a_space_is_made_once():
    assert lattice_of(SPACES["tiny"]) is lattice_of(tiny_space())
    assert sums([np.array([1.0, 2.0])], np.array([[1], [0]])).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("damage", [lambda content: content[:200], lambda content: b"", lambda content: content[::-1]])
def test_kept_tables_that_are_cut_off_or_damaged_are_made_again(tmp_path, damage):
    fits, _ = limited(SPACES["small"], 0.3)
    fits.keep(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert paths
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    again = FeasibleSet(fits.lattice, fits.sums, folder=tmp_path)
    assert again.count() == fits.count()
    again.keep(tmp_path)
    assert sorted(tmp_path.iterdir()) == paths
    for path, content in zip(paths, whole, strict=True):
        with np.load(path) as again, np.load(io.BytesIO(content)) as before:
            assert all((again[name] == before[name]).all() for name in before.files)


def test_every_way_of_a_stage_can_change_also_to_another_kind():
    """A way changes in one choice, or, where the kind is another, in that alone."""
    for layer in lattice_of(search_spaces.load("hybrid-32")).layers:
        if "kind" not in layer.names:
            continue
        place = layer.names.index("kind")
        for way, code in enumerate(layer.codes):
            changed = layer.changed(way)
            for other, found in zip(layer.codes, changed, strict=True):
                differing = [index for index, (a, b) in enumerate(zip(code, other, strict=True)) if a != b]
                assert np.flatnonzero(found).tolist() == ([place] if place in differing else differing)
            assert changed.any()
