"""The candidates that keep all budgets, as a set: counted, drawn from evenly, and searched exactly for sums of scores.

A budget on a sum of rows (latency of any table, parameters, multiply-adds) is kept track of from step to step through
the lattice of the space, in bins of what is left of it. Bins are rounded so that the tables hold every candidate that
fits and a few that do not: those are drawn again, so a draw is exactly even over what fits, and nothing is lost. What
is no sum of rows (memory, confidence) is checked candidate by candidate.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from nas.core.errors import BudgetError
from nas.core.files import whole
from nas.search.lattice import Costs, Lattice, Path, sums

BINS = 4096  # of what a budget leaves beyond the smallest candidate, for counts and draws
BINS_OF_TWO = 160  # a side, where two budgets are kept track of
BINS_OF_BEST = 128  # for bounds of the exact search, which itself has no bins
ENOUGH = 0.05  # share of draws that must keep the other budgets; below it two are kept track of
EXPANSIONS = 20_000  # of the exact search, after which it settles for the best it has
DRAWS = 256  # at once
TRIES = 200  # batches without one that fits, after which a set counts as empty
SLACK = 1e-9  # relative: sums of the same numbers in another order differ by less
Check = Callable[[Path], bool]


@dataclass(frozen=True)
class Sum:
    """A budget on a sum over steps.

    Attributes:
        name: how the budget is spelled.
        costs: of every step, layer by layer; none is negative.
        limit: on the sum of a candidate.
    """

    name: str
    costs: Costs
    limit: float


class _Reduced:
    """The costs of a sum beyond the smallest way on: what a step takes of the slack of a budget."""

    def __init__(self, lattice: Lattice, item: Sum) -> None:
        self.limit = item.limit
        self.least = _least(lattice, item.costs)
        self.most = -_least(lattice, [-cost for cost in item.costs])[0][0]
        self.smallest = float(self.least[0][0])
        self.steps = [
            np.maximum(cost + self.least[index + 1][layer.target] - self.least[index][layer.source], 0.0)
            for index, (layer, cost) in enumerate(zip(lattice.layers, item.costs, strict=True))
        ]
        self.binds = item.limit < self.most * (1 - SLACK)
        self.slack = min(item.limit, self.most) - self.smallest + SLACK * abs(self.smallest)

    def bins(self, count: int, up: bool = False) -> list[np.ndarray]:
        """What steps take in bins, of which the slack has `count`; rounded down, or up."""
        width = max(self.slack, 1e-300) / count
        rounded = np.ceil if up else np.floor
        return [np.minimum(rounded(step / width), count + 1).astype(np.int64) for step in self.steps]


def _read_arrays(path: FilePath, count: int) -> list[np.ndarray] | None:
    """What `np.savez` wrote, so many arrays; None where there is no such file, or it was cut off or damaged."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            found = [stored[f"arr_{number}"] for number in range(count)]  # which checks their sums
    except (OSError, EOFError, LookupError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    return found


def _least(lattice: Lattice, costs: Costs) -> list[np.ndarray]:
    """The smallest sum from each state on, layer by layer; 0 at the end."""
    found = [np.zeros(1)]
    for layer, cost in zip(reversed(lattice.layers), reversed(costs), strict=True):
        found.append(np.minimum.reduceat(cost + found[-1][layer.target], layer.first[:-1]))
    return found[::-1]


class FeasibleSet:
    """The candidates of a lattice that keep all budgets.

    Args:
        lattice: all candidates.
        sums: budgets on sums; the first of them is also what `front` walks along.
        check: further budgets, candidate by candidate; None for none.
        folder: where its tables are kept for the next process; None for nowhere.
    """

    def __init__(
        self,
        lattice: Lattice,
        sums: Sequence[Sum],
        check: Check | None = None,
        folder: FilePath | None = None,
    ) -> None:
        self.lattice, self.sums, self.check = lattice, tuple(sums), check
        self.layers = lattice.layers
        self._folder = folder
        self._reduced = [_Reduced(lattice, item) for item in sums]
        self._tables: dict[tuple[tuple[int, ...], bool], list[np.ndarray]] = {}
        self._bins_of_best: dict[int, list[np.ndarray]] = {}

    # which fit

    def fits(self, path: Path) -> bool:
        """Whether a candidate keeps all budgets."""
        return bool(self.fitting(np.array([path]))[0])

    def fitting(self, paths: np.ndarray) -> np.ndarray:
        """Which candidates keep all budgets. Shape: (n, layers) -> (n,) bool"""
        fits = np.ones(len(paths), dtype=bool)
        for item in self.sums:
            fits &= sums(item.costs, paths) <= item.limit
        if self.check is not None:
            for place in np.flatnonzero(fits):
                fits[place] = self.check(tuple(map(int, paths[place])))
        return fits

    # how many

    def size_of_all(self) -> int:
        """How many candidates there are, budgets or not; exact."""
        count = [np.array([1], dtype=object)]
        for layer in reversed(self.layers):
            per_target = np.zeros((len(layer.first) - 1, len(count[-1])), dtype=np.int64)
            np.add.at(per_target, (layer.source, layer.target), 1)
            count.append(per_target.astype(object) @ count[-1])
        return int(count[-1][0])

    @functools.cached_property
    def tracked(self) -> tuple[int, ...]:
        """Places of the budgets that are kept track of: the one that binds most, and one more where needed."""
        if not self.sums:
            return ()
        totals = [float(self._counts((place,))[0][0, -1]) for place in range(len(self.sums))]
        first = int(np.argmin(totals))
        others = [place for place, item in enumerate(self._reduced) if place != first and item.binds]
        if not others:
            return (first,)
        drawn = self._superset(np.random.default_rng(0), 2000, (first,))
        keeps = {
            place: float((sums(self.sums[place].costs, drawn) <= self.sums[place].limit).mean()) for place in others
        }
        second = min(others, key=lambda place: keeps[place])
        return (first,) if keeps[second] >= ENOUGH else (first, second)

    def _counts(self, places: tuple[int, ...], up: bool = False) -> list[np.ndarray]:
        """By layer, state and bins left of each tracked budget: how many ways on there are (float64)."""
        if (places, up) in self._tables:
            return self._tables[places, up]
        path = self._file(places, up)
        if path is not None and (stored := _read_arrays(path, len(self.layers) + 1)) is not None:
            self._tables[places, up] = stored
            return stored
        side = BINS if len(places) == 1 else BINS_OF_TWO
        taken = [self._reduced[place].bins(side, up) for place in places]
        shape = (side + 1,) * len(places)
        behind = np.ones((1, *shape))
        tables = [behind]
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            here = np.zeros((len(layer.first) - 1, *shape))
            costs = [bins[index] for bins in taken]
            possible = np.logical_and.reduce([cost <= side for cost in costs])
            if index == len(self.layers) - 1:
                np.add.at(here, (layer.source[possible], *(cost[possible] for cost in costs)), 1.0)
                for axis in range(1, here.ndim):
                    np.cumsum(here, axis=axis, out=here)
            else:
                for step in np.flatnonzero(possible):
                    at = [int(cost[step]) for cost in costs]
                    into = here[layer.source[step]]
                    part = behind[layer.target[step]]
                    into[tuple(slice(a, None) for a in at)] += part[tuple(slice(None, side + 1 - a) for a in at)]
            behind = here
            tables.append(here)
        self._tables[places, up] = tables[::-1]
        if path is not None:
            with whole(path, sync=False) as temporary, temporary.open("wb") as file:
                np.savez(file, *self._tables[places, up])
        return self._tables[places, up]

    def _file(self, places: tuple[int, ...], up: bool) -> FilePath | None:
        if self._folder is None:
            return None
        marks = [self.key[:16], *map(str, places), *(["up"] if up else [])]
        return self._folder / f"feasible-{'-'.join(marks)}.npz"

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of what the set is made of: steps, costs and limits, so of space, tables and budgets."""
        digest = hashlib.sha256(repr((BINS, BINS_OF_TWO, [item.limit for item in self.sums])).encode())
        for number, layer in enumerate(self.layers):
            for array in (layer.first, layer.target, *(item.costs[number] for item in self.sums)):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def count(self) -> tuple[float, float]:
        """Bounds on how many candidates keep the budgets: at least, at most.

        With budgets that are checked candidate by candidate, or with more than two on sums, 0 is the lower bound.
        """
        if not any(item.binds for item in self._reduced) and self.check is None:
            return (float(self.size_of_all()),) * 2
        if any(item.slack < 0 for item in self._reduced):
            return 0.0, 0.0
        places = self.tracked
        most = float(self._counts(places)[0][(0, *(-1,) * len(places))])
        rest = [item for place, item in enumerate(self._reduced) if place not in places and item.binds]
        if rest or self.check is not None:
            return 0.0, most
        return float(self._counts(places, up=True)[0][(0, *(-1,) * len(places))]), most

    @functools.cached_property
    def about(self) -> float:
        """How many candidates keep the budgets: the middle of close bounds, else the upper bound times the share of
        draws that fit.
        """
        least, most = self.count()
        if least >= 0.99 * most:
            return (least + most) / 2
        drawn = self._superset(np.random.default_rng(0), 4000, self.tracked)
        return most * float(self.fitting(drawn).mean()) if len(drawn) else 0.0

    def share_of(self, place: int) -> float:
        """The share of all candidates that keeps one of the budgets on sums."""
        return float(self._counts((place,))[0][0, -1]) / self.size_of_all()

    # draws

    def _superset(self, rng: np.random.Generator, count: int, places: tuple[int, ...]) -> np.ndarray:
        """Even draws of what keeps the tracked budgets up to the width of a bin. Shape: (count, layers)"""
        if not places:
            return self._unbounded(rng, count)
        tables = self._counts(places)
        side = tables[0].shape[-1] - 1
        taken = [self._reduced[place].bins(side) for place in places]
        paths = np.zeros((count, len(self.layers)), dtype=np.int64)
        if tables[0][(0, *(side,) * len(places))] <= 0:
            return paths[:0]
        states = np.zeros(count, dtype=np.int64)
        left = [np.full(count, side) for _ in places]
        for index, layer in enumerate(self.layers):
            for state in np.unique(states):
                mine = np.flatnonzero(states == state)
                steps = np.arange(layer.first[state], layer.first[state + 1])
                rest = [have[mine, None] - bins[index][steps][None] for have, bins in zip(left, taken, strict=True)]
                ok = np.logical_and.reduce([item >= 0 for item in rest])
                behind = tables[index + 1][(layer.target[steps][None], *(np.maximum(item, 0) for item in rest))]
                odds = np.cumsum(np.where(ok, behind, 0.0), axis=1)
                drawn = rng.random(len(mine)) * odds[:, -1]
                picked = np.minimum((odds <= drawn[:, None]).sum(1), len(steps) - 1)
                paths[mine, index] = steps[picked]
                for have, item in zip(left, rest, strict=True):
                    have[mine] = item[np.arange(len(mine)), picked]
            states = layer.target[paths[:, index]]
        return paths

    @functools.cached_property
    def _free(self) -> FeasibleSet:
        nothing = Sum("", [np.zeros(len(layer.way)) for layer in self.layers], 1.0)
        return FeasibleSet(self.lattice, [nothing])

    def _unbounded(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self._free._superset(rng, count, (0,))

    def draw(self, rng: np.random.Generator, count: int = 1) -> np.ndarray:
        """Draws with replacement, every candidate that fits as likely as any other. Shape: (count, layers)

        Raises:
            BudgetError: nothing that fits was found.
        """
        if not self.count()[1]:
            raise BudgetError("no network keeps all budgets")
        found: list[np.ndarray] = []
        have = tries = 0
        while have < count:
            batch = self._superset(
                rng, min(max(DRAWS, count - have) if have or tries else count + 8, 4096), self.tracked
            )
            batch = batch[self.fitting(batch)]
            found.append(batch)
            have += len(batch)
            tries += 1
            if tries - have > TRIES:
                raise BudgetError("no network that keeps all budgets was found")
        return np.concatenate(found)[:count]

    def unseen(self, rng: np.random.Generator, seen: Collection[Path]) -> Path | None:
        """An even draw of the candidates that fit and are not among these; None where there are no further ones."""
        for _ in range(3):
            for path in self.draw(rng, 32):
                if (found := tuple(map(int, path))) not in seen:
                    return found
        nothing = [np.zeros(len(layer.way)) for layer in self.layers]
        left = self.best(nothing, 64, seen)
        return left[int(rng.integers(len(left)))] if left else None

    # near ones

    def laid(self, wanted: Sequence[int]) -> Path | None:
        """The path that lays these ways, each taken to the nearest one that its state has."""
        path, state = [], 0
        for layer, way in zip(self.layers, wanted, strict=True):
            step = int(layer.step_of[state, way])
            if step < 0:
                steps = np.arange(layer.first[state], layer.first[state + 1])
                step = int(steps[np.argmin(layer.distances(layer.codes[way])[layer.way[steps]])])
            path.append(step)
            state = int(layer.target[step])
        return tuple(path)

    def ways(self, path: Path) -> list[int]:
        """The ways that a path lays."""
        return [int(layer.way[step]) for layer, step in zip(self.layers, path, strict=True)]

    def mutated(self, path: Path, rng: np.random.Generator) -> Path:
        """A candidate with one choice changed, whether it fits or not."""
        ways = self.ways(path)
        wide = [index for index, layer in enumerate(self.layers) if len(layer.names)]
        if not wide:
            return path
        index = wide[rng.integers(len(wide))]
        layer = self.layers[index]
        changed = layer.changed(ways[index])
        columns = np.flatnonzero(changed.any(0))
        column = columns[rng.integers(len(columns))]
        others = np.flatnonzero(changed[:, column])
        fewest = changed[others].sum(1)
        others = others[fewest == fewest.min()]
        ways[index] = int(others[rng.integers(len(others))])
        found = self.laid(ways)
        return path if found is None else found

    def neighbours(self, path: Path, rng: np.random.Generator, count: int, changes: int = 2) -> list[Path]:
        """Up to `count` different candidates that fit, one to `changes` choices away from a candidate."""
        found: dict[Path, None] = {}
        for _ in range(4 * count):
            near = path
            for _ in range(1 + int(rng.integers(changes))):
                near = self.mutated(near, rng)
            if near != path:
                found[near] = None
            if len(found) >= 2 * count:
                break
        return self._that_fit(list(found))[:count]

    def _that_fit(self, paths: list[Path]) -> list[Path]:
        if not paths:
            return []
        fits = self.fitting(np.array(paths))
        return [path for path, fit in zip(paths, fits, strict=True) if fit]

    def crossed(self, one: Path, two: Path, rng: np.random.Generator, tries: int = 20) -> Path | None:
        """A candidate that fits with choices of either of two; None where none of a few tries fits."""
        mine, theirs = self.ways(one), self.ways(two)
        for _ in range(tries):
            ways = []
            for layer, a, b in zip(self.layers, mine, theirs, strict=True):
                distances = layer.distances(layer.mixed(a, b, rng))
                ways.append(int(np.argmin(distances)))
            path = self.laid(ways)
            if path is not None and path not in (one, two) and self.fits(path):
                return path
        return None

    def nearest(self, path: Path, exclude: Collection[Path] = ()) -> Path | None:
        """The candidate that fits with the most choices in common with the given one, itself where it fits; exact up to
        the limits of `best`.
        """
        if path not in exclude and self.fits(path):
            return path
        scores = [
            -layer.distances(layer.codes[way])[layer.way]
            for layer, way in zip(self.layers, self.ways(path), strict=True)
        ]
        return next(iter(self.best(scores, 1, exclude)), None)

    # the best of a sum of scores

    def best(self, scores: Costs, count: int = 1, exclude: Collection[Path] = ()) -> list[Path]:
        """The candidates of the largest sums of scores among those that fit, best first; exact.

        A best-first search over beginnings of paths. What the rest can reach at most comes from the same tables as
        counts do: the largest score of any way on that takes no more bins than are left.

        Args:
            scores: of every step, layer by layer; any numbers.
            count: how many are wanted.
            exclude: candidates that do not count.

        Returns:
            As many as wanted, fewer where fewer fit.
        """
        search = _Search(self, scores)
        return list(itertools.islice(search.paths(exclude), count))

    def front(self, scores: Costs, levels: int) -> list[Path]:
        """For evenly spaced levels of the first budget, the candidate of the largest sum of scores within it."""
        search = _Search(self, scores, 0)
        found = [search.greedy(max(1, round(BINS_OF_BEST * level / levels))) for level in range(1, levels + 1)]
        return self._that_fit(list(dict.fromkeys(found)))

    @functools.cached_property
    def _order(self) -> tuple[int, ...]:
        """Budgets on sums that bind, the tightest first."""
        binding = [place for place, item in enumerate(self._reduced) if item.binds]
        first = [place for place in self.tracked if place in binding]
        return (*first, *(place for place in binding if place not in first))

    def closest(self) -> Path:
        """The candidate that comes closest to keeping all budgets on sums, whether it does or not.

        Sums are weighed against each other until the largest excess is as small as it gets (multiplicative weights).
        """
        limits = [max(item.limit, 1e-300) for item in self.sums]
        weights = np.ones(len(limits))
        best, kept = np.inf, None
        for _ in range(60):
            shares = [weight / limit for weight, limit in zip(weights, limits, strict=True)]
            mixed = [
                sum(w * item.costs[n] for w, item in zip(shares, self.sums, strict=True))
                for n in range(len(self.layers))
            ]
            path = self._cheapest([np.asarray(cost) for cost in mixed])
            used = np.array([float(sums(item.costs, np.array([path]))[0]) for item in self.sums]) / limits
            if used.max() < best:
                best, kept = float(used.max()), path
            weights = weights * np.exp(np.clip(used - used.max(), -3, 0))
            weights = np.maximum(weights / weights.max(), 1e-6)
        assert kept is not None
        return kept

    def _cheapest(self, costs: Costs) -> Path:
        least, state, path = _least(self.lattice, costs), 0, []
        for index, layer in enumerate(self.layers):
            steps = slice(layer.first[state], layer.first[state + 1])
            path.append(
                int(layer.first[state] + np.argmin(costs[index][steps] + least[index + 1][layer.target[steps]]))
            )
            state = int(layer.target[path[-1]])
        return tuple(path)

    def _best_bins(self, place: int) -> list[np.ndarray]:
        if place not in self._bins_of_best:
            self._bins_of_best[place] = self._reduced[place].bins(BINS_OF_BEST)
        return self._bins_of_best[place]

    def smallest(self, place: int = 0) -> Path | None:
        """The candidate that fits with the smallest sum of a budget."""
        return next(iter(self.best([-cost for cost in self.sums[place].costs])), None)

    def largest(self, place: int = 0) -> Path | None:
        """The candidate that fits with the largest sum of a budget."""
        return next(iter(self.best(self.sums[place].costs)), None)


class _Search:
    """The search behind `FeasibleSet.best`, with the bounds that steer it."""

    def __init__(self, feasible: FeasibleSet, scores: Costs, primary: int | None = None) -> None:
        self.set, self.scores = feasible, scores
        order = feasible._order if primary is None else (primary, *(p for p in feasible._order if p != primary))
        self.reduced = [feasible._reduced[place] for place in order]
        self.slacks = [item.slack for item in self.reduced]
        self.weights = [0.0] * len(self.reduced)
        self.first = None
        if self.reduced:
            self.first = feasible._best_bins(order[0])
        self._bound()
        if len(self.reduced) > 1:
            self._weigh()

    def _bound(self) -> None:
        """By layer, state and bins left: the largest score of a way on, less the weighted costs of other budgets."""
        layers = self.set.layers
        side = BINS_OF_BEST if self.first is not None else 0
        behind = np.zeros((1, side + 1))
        self.tables, self.priced = [behind], []
        for index in reversed(range(len(layers))):
            layer, score = layers[index], self.scores[index].astype(float)
            for weight, item in zip(self.weights[1:], self.reduced[1:], strict=True):
                score = score - weight * item.steps[index] if weight else score
            self.priced.append(score)
            cost = self.first[index] if self.first is not None else np.zeros(len(score), int)
            here = np.full((len(layer.first) - 1, side + 1), -np.inf)
            if index == len(layers) - 1:
                ok = cost <= side
                np.maximum.at(here, (layer.source[ok], cost[ok]), score[ok])
                np.maximum.accumulate(here, axis=1, out=here)
            else:
                padded = np.concatenate([np.full((len(behind), side + 1), -np.inf), behind], axis=1)
                starts = layer.target * (2 * side + 2) + np.maximum(side + 1 - cost, 0)
                values = padded.ravel()[starts[:, None] + np.arange(side + 1)]
                values += score[:, None]
                np.maximum.reduceat(values, layer.first[:-1], axis=0, out=here)
            behind = here
            self.tables.append(here)
        self.tables.reverse()
        self.priced.reverse()

    def greedy(self, bins: int = BINS_OF_BEST) -> Path:
        """The way that the bounds promise most of, with so many bins."""
        state, path, left = 0, [], bins if self.first is not None else 0
        for index, layer in enumerate(self.set.layers):
            steps = slice(layer.first[state], layer.first[state + 1])
            rest = (
                left - self.first[index][steps] if self.first is not None else np.zeros(steps.stop - steps.start, int)
            )
            value = self.tables[index + 1][layer.target[steps], np.maximum(rest, 0)] + self.priced[index][steps]
            step = int(np.argmax(np.where(rest >= 0, value, -np.inf)))
            left = int(rest[step])
            path.append(int(layer.first[state]) + step)
            state = int(layer.target[path[-1]])
        return tuple(path)

    def _weigh(self) -> None:
        """Weigh the budgets that bins do not track (their Lagrange multipliers), so that the bounds feel them."""
        span = max(float(np.ptp(score)) for score in self.scores) or 1.0
        sizes = [span / max(slack, 1e-300) for slack in self.slacks]
        best, kept = np.inf, list(self.weights)
        for turn in range(8):
            path = self.greedy()
            bound = float(self.tables[0][0, -1]) + sum(
                w * s for w, s in zip(self.weights[1:], self.slacks[1:], strict=True)
            )
            if bound < best:
                best, kept = bound, list(self.weights)
            over = [
                sum(float(step[at]) for step, at in zip(item.steps, path, strict=True)) / max(slack, 1e-300) - 1
                for item, slack in zip(self.reduced[1:], self.slacks[1:], strict=True)
            ]
            if turn == 0 and max(over) <= 0:
                return
            rate = 1.0 / (1 + turn)
            for place, excess in enumerate(over, 1):
                self.weights[place] = max(0.0, self.weights[place] + rate * sizes[place] * max(-1.0, min(1.0, excess)))
            self._bound()
        self.weights = kept
        self._bound()

    def paths(self, exclude: Collection[Path]) -> Iterator[Path]:
        """Candidates that fit, best first."""
        layers, side = self.set.layers, BINS_OF_BEST
        widths = [max(slack, 1e-300) for slack in self.slacks]
        price = sum(weight * slack for weight, slack in zip(self.weights, self.slacks, strict=True))
        numbers = itertools.count()
        heap: list[tuple[float, int, int, Any]] = []  # bound, depth: ties go to the longest beginning

        def push(path: Path, state: int, score: float, paid: float, left: tuple[float, ...]) -> None:
            """Put the ways on from a beginning into the heap: the best of them, which brings the next when taken."""
            layer, index = layers[len(path)], len(path)
            steps = slice(int(layer.first[state]), int(layer.first[state + 1]))
            rest = [have - item.steps[index][steps] for have, item in zip(left, self.reduced, strict=True)]
            ok = np.ones(steps.stop - steps.start, bool)
            for item, width in zip(rest, widths, strict=True):
                ok &= item >= -SLACK * width
            gained = score + self.scores[index][steps]
            if index == len(layers) - 1:
                bound = gained
            else:
                bins = 0
                if self.first is not None:
                    bins = np.clip((rest[0] / widths[0] * side * (1 + SLACK)).astype(int) if side else 0, 0, side)
                bound = paid + self.priced[index][steps] + self.tables[index + 1][layer.target[steps], bins] + price
            bound = np.where(ok, bound, -np.inf)
            order = np.argsort(-bound, kind="stable")[: int(np.isfinite(bound).sum())]
            if len(order):
                node = (path, steps.start, layer, order, bound, rest, gained, paid + self.priced[index][steps])
                heapq.heappush(heap, (-float(bound[order[0]]), -len(path), next(numbers), (node, 0)))

        push((), 0, 0.0, 0.0, tuple(self.slacks))
        for _ in range(EXPANSIONS + len(exclude)):
            if not heap:
                return
            _, _, _, (node, at) = heapq.heappop(heap)
            path, start, layer, order, bound, rest, gained, paid = node
            if at + 1 < len(order):
                heapq.heappush(heap, (-float(bound[order[at + 1]]), -len(path), next(numbers), (node, at + 1)))
            step = int(order[at])
            longer = (*path, start + step)
            if len(longer) == len(layers):
                if longer not in exclude and self.set.fits(longer):
                    yield longer
            else:
                left = tuple(float(item[step]) for item in rest)
                push(longer, int(layer.target[start + step]), float(gained[step]), float(paid[step]), left)
