"""The feasible set of a space under the limits of a search: limits as sums over steps, the rest as a check."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import numpy as np

from nas.core.errors import BudgetError
from nas.core.space import Space
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.core.units import to_ms
from nas.metrics import load_metric
from nas.search.feasible import FeasibleSet, Sum
from nas.search.lattice import ArchLattice, Path, sums
from nas.search.limits import ROUNDING, Estimator, Limit, rounded_up, to_loosen
from nas.search.samplers._context import Context


@functools.lru_cache(maxsize=4)
def lattice_of(space: Space) -> ArchLattice:
    """The lattice of a space, made once in a process."""
    return ArchLattice(space)


def feasible_set(space: Space, estimator: Estimator, folder: FilePath | None = None) -> FeasibleSet:
    """What fits in a space.

    The first sum is the latency of the request's table, without a limit where none is asked for.

    Args:
        space: all archs.
        estimator: tables and limits.
        folder: where an earlier process may have kept the set's tables; None for nowhere.

    Raises:
        BudgetError: nothing keeps all limits, naming the network that comes closest, and what to loosen.
        MissingLatency: a table lacks rows of the space.
    """
    fits = _set_of(space, estimator, folder)
    if fits.is_empty:
        raise _nothing(fits, estimator)
    return fits


def _set_of(space: Space, estimator: Estimator, folder: FilePath | None = None) -> FeasibleSet:
    lattice = lattice_of(space)
    found: list[Sum] = []
    checked: list[int] = []
    for place, limit in enumerate(estimator.limits):
        item, whole = _sum_of(limit, lattice, estimator)
        if item is not None:
            found.append(item)
        if not whole:
            checked.append(place)
    mine = [
        limit
        for limit in estimator.limits
        if limit.metric == "latency_ms" and limit.table is None and limit.confidence is None
    ]
    if not mine:
        found.insert(0, Sum("", lattice.costs(estimator.table.cost_of_row(space)), math.inf))
    else:
        found.sort(key=lambda item: item.name != mine[0].title)

    def check(path: Path) -> bool:
        estimate = estimator.estimate(lattice.arch(path))
        return all(estimator.limits[place].excess(estimate.used[place]) <= 0 for place in checked)

    return FeasibleSet(lattice, found, check if checked else None, folder)


def _sum_of(limit: Limit, lattice: ArchLattice, estimator: Estimator) -> tuple[Sum | None, bool]:
    """A limit as a sum that nothing within the limit exceeds, None for no such sum; and whether the sum says all."""
    metric = load_metric(limit.metric)
    table = estimator.table if limit.table is None else estimator.tables[limit.table]
    if metric.of_table:
        table.require(lattice.space)
    floor = metric.floor(lattice.space, table)
    if floor is None:
        return None, False
    cost, of_sum = floor
    costs = lattice.costs(cost)
    most = limit.limit * (1 + ROUNDING / 2)
    whole = metric.per_row(lattice.space, table) is not None and limit.confidence is None
    if limit.confidence is not None:  # of families and rows in doubt it is more: that is checked
        most /= table.bound(lattice.space.input_shape, limit.confidence)
    return Sum(limit.title, costs, inverse(of_sum, most, lattice.most(costs))), whole


def inverse(of_sum: Callable[[np.ndarray], np.ndarray], value: float, high: float) -> float:
    """The largest sum whose `of_sum`, which grows, is no larger than a value; by bisection."""
    low = 0.0
    if float(of_sum(np.array([high]))[0]) <= value:
        return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if float(of_sum(np.array([middle]))[0]) <= value else (low, middle)
    return low


def _nothing(fits: FeasibleSet, estimator: Estimator) -> BudgetError:
    """That nothing keeps all limits, naming what comes closest and what to ask for."""
    lattice = fits.lattice
    path = fits.closest()
    arch = lattice.arch(path)  # type: ignore[attr-defined]
    estimate = estimator.estimate(arch)
    needs = [
        f"{limit.metric}{f'[{limit.table}]' if limit.table else ''}<={rounded_up(used):g}"
        for limit, used in zip(estimator.limits, estimate.used, strict=True)
    ]
    asked = ", ".join(limit.title for limit in estimator.limits)
    pairs = [
        f"; {one.name} and {two.name} contradict each other"
        for one, two in itertools.combinations(fits.sums if len(estimator.limits) > 2 else (), 2)
        if FeasibleSet(lattice, [one, two]).is_empty
    ]
    params = " ".join(f"{name}={value}" for name, value in lattice.params_of(path).items())
    return BudgetError(
        f"no architecture of space {lattice.space.name} keeps {asked} together{''.join(pairs)}. "
        f"The nearest, arch {arch.id}, takes {to_ms(estimate.latency.total_us):.4g} ms: {estimator.misfit(estimate)}; "
        f"it has {params}. Ask for {', '.join(needs)}, or loosen one of them further"
        f"{to_loosen(lattice.space, lambda part: not _set_of(part, estimator).is_empty)}"
    )


def shares(fits: FeasibleSet, limits: Sequence[Limit]) -> dict[str, float]:
    """The share of the space that keeps each limit alone, by its title; those that are no sum are left out."""
    names = {limit.title for limit in limits}
    return {item.name: fits.share_of(place) for place, item in enumerate(fits.sums) if item.name in names}


def context_of(
    space: Space, estimator: Estimator, fits: FeasibleSet, objectives: int = 1, starts: bool = True
) -> Context:
    """What samplers are told: the set, and the multiply-adds, parameters and latency of its candidates.

    Args:
        space: all archs.
        estimator: tables and limits.
        fits: the set.
        objectives: 1, or 2 for a front.
        starts: whether the published networks of the space that fit come first.
    """
    lattice = lattice_of(space)
    scalars = {
        "macs": lattice.costs(macs_of_unit),
        "params": lattice.costs(params_of_unit),
        **{f"latency {number}": item.costs for number, item in enumerate(fits.sums) if item.name.startswith("latency")},
    }
    scalars.setdefault("latency 0", fits.sums[0].costs)

    def latency(paths: np.ndarray) -> np.ndarray:
        return estimator.table.total_us(space, sums(fits.sums[0].costs, paths)) / 1000

    begin = tuple(path for path in lattice.presets().values() if fits.fits(path)) if starts else ()
    return Context(fits, objectives, scalars, latency, begin)
