"""The feasible set against brute force: spaces small enough to list every network."""

import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from nas.core.arch import calls_of
from nas.core.errors import BudgetError, InputError
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import feasible_set, lattice_of
from nas.search.lattice import ArchLattice, ListLattice, sums
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


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 1.0])
def test_counts_agree_with_a_list(space, share):
    fits, kept = limited(space, share)
    least, most = fits.count()
    assert least <= len(kept) <= most
    assert most - least <= 0.02 * len(kept)
    assert fits.size_of_all() == space.count()


@pytest.mark.parametrize("more", [TWO, THREE])
def test_counts_of_several_budgets_bound_the_truth(space, more):
    fits, kept = limited(space, 0.6, more)
    least, most = fits.count()
    assert least <= len(kept) <= most


@pytest.mark.parametrize("more", [(), TWO, THREE])
def test_draws_are_even_over_the_networks_that_fit(more):
    fits, kept = limited(TINY, 0.3, more)
    drawn = fits.draw(np.random.default_rng(3), 20_000)
    paths, counts = np.unique(drawn, axis=0, return_counts=True)
    archs = [fits.lattice.arch(tuple(path)) for path in paths]
    assert set(archs) <= kept
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
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert files
    again = feasible_set(space, estimator_at(space, table, "latency_ms<=p50"), tmp_path)
    assert again.count() == one.count()
    other = feasible_set(space, estimator_at(space, table, "latency_ms<=p20"), tmp_path)
    assert other.count() != one.count()
    assert set(files) < {path.name for path in tmp_path.iterdir()}


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
    FeasibleSet(fits.lattice, fits.sums, folder=tmp_path).count()
    paths = sorted(tmp_path.iterdir())
    assert paths
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    assert FeasibleSet(fits.lattice, fits.sums, folder=tmp_path).count() == fits.count()
    assert sorted(tmp_path.iterdir()) == paths
    for path, content in zip(paths, whole, strict=True):
        with np.load(path) as again, np.load(io.BytesIO(content)) as before:
            assert all((again[name] == before[name]).all() for name in before.files)
