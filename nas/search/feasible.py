"""The candidates that keep all budgets, as a set: counted, drawn from evenly, and searched exactly for sums of scores.

A budget on a sum of rows (latency of any table, parameters, multiply-adds) is kept track of from step to step through
the lattice of the space, in bins of what is left of it. Bins are rounded so that the tables hold every candidate that
fits and a few that do not: those are drawn again, so a draw is exactly even over what fits, and nothing is lost to
rounding. What is no sum of rows (memory, confidence) is checked candidate by candidate.

How many fit is counted exactly where one sum binds, by pairs of beginnings and ends of paths, and where so few
candidates are left that each can be looked at. Else it is known between bounds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import itertools
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from nas.core.errors import BudgetError, RunError
from nas.core.files import whole
from nas.search.lattice import Costs, Lattice, Layer, Path, sums

BINS = (4096, 160, 32)  # a side where one, two or three budgets are kept track of, for counts and draws
BINS_OF_BEST = 128  # for bounds of the exact search, which itself has no bins
ENOUGH = 0.05  # share of draws that must keep the other budgets; below it one more is kept track of
STATES_AT_ONCE = 8  # there: what they need fits the cache of a core
LISTED = 20_000  # candidates that the tables leave, up to which each is looked at
PAIRS = 1e8  # beginnings and ends of paths, up to which they are paired to count exactly
EXPANSIONS = 20_000  # of the exact search, after which it settles for the best it can reach at once,
DIVES = 100  # from so many of the beginnings that promise most
BATCH = 4096  # draws at once
DRAWS = 50_000  # without one that fits, after which drawing ends
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


def _least(lattice: Lattice, costs: Costs) -> list[np.ndarray]:
    """The smallest sum from each state on, layer by layer; 0 at the end."""
    found = [np.zeros(1)]
    for layer, cost in zip(reversed(lattice.layers), reversed(costs), strict=True):
        found.append(np.minimum.reduceat(cost + found[-1][layer.target], layer.first[:-1]))
    return found[::-1]


def _onward(layer: Layer, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every step on from each of some states: the place of the state, and the step. Shapes: (n,), (n,)"""
    widths = layer.first[states + 1] - layer.first[states]
    line = np.repeat(np.arange(len(states)), widths)
    return line, layer.first[states][line] + np.arange(len(line)) - (np.cumsum(widths) - widths)[line]


class _Within:
    """Counts which of some points, of one or two coordinates, lie at or below others. Shape: (coordinates, points)"""

    def __init__(self, points: np.ndarray) -> None:
        self.edges = [np.sort(line) for line in points]
        if len(points) == 2:
            place = np.searchsorted(self.edges[1], points[1][np.argsort(points[0])], side="left")
            self.below = np.zeros((len(place) + 1, len(place) + 1), np.int32)  # by the first so many of each coordinate
            self.below[np.arange(len(place)) + 1, place + 1] = 1
            np.cumsum(self.below, axis=0, out=self.below)
            np.cumsum(self.below, axis=1, out=self.below)

    def count(self, others: np.ndarray) -> int:
        """How many pairs there are of a point and another at or above it. Shape: (coordinates, n)"""
        places = [np.searchsorted(edge, line, side="right") for edge, line in zip(self.edges, others, strict=True)]
        return int((places[0] if len(places) == 1 else self.below[places[0], places[1]]).sum())


class FeasibleSet:
    """The candidates of a lattice that keep all budgets.

    Args:
        lattice: all candidates.
        sums: budgets on sums; the first of them is also what `front` walks along.
        check: further budgets, candidate by candidate; None for none.
        folder: where an earlier process may have kept its tables (`keep`); None for nowhere.
    """

    def __init__(
        self,
        lattice: Lattice,
        sums: Sequence[Sum],
        check: Check | None = None,
        folder: FilePath | None = None,
    ) -> None:
        nothing = Sum("", [np.zeros(len(layer.way)) for layer in lattice.layers], 1.0)
        self.lattice, self.sums, self.check = lattice, tuple(sums) or (nothing,), check
        self.layers = lattice.layers
        self._folder = folder
        self._reduced = [_Reduced(lattice, item) for item in self.sums]
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
        """Places of the budgets that are kept track of: the one that binds most, and up to two more where needed."""
        places: tuple[int, ...] = (min(range(len(self.sums)), key=self._most_alone),)
        while len(places) < len(BINS):
            drawn = self._superset(np.random.default_rng(0), 2000, places)
            others = [place for place, item in enumerate(self._reduced) if place not in places and item.binds]
            if not others or not len(drawn):
                break
            keeps = {
                place: float((sums(self.sums[place].costs, drawn) <= self.sums[place].limit).mean()) for place in others
            }
            next_one = min(others, key=keeps.__getitem__)
            if keeps[next_one] >= ENOUGH:
                break
            places = (*places, next_one)
        return places

    def _most_alone(self, place: int) -> float:
        """How many candidates keep one of the budgets on sums, at most."""
        return float(self._counts((place,))[0][0, -1])

    def _counts(self, places: tuple[int, ...], up: bool = False) -> list[np.ndarray]:
        """By layer, state and bins left of each tracked budget: how many ways on there are (float64)."""
        if (places, up) in self._tables:
            return self._tables[places, up]
        side = BINS[len(places) - 1]
        if (kept := self._kept(places, up, side)) is not None:
            self._tables[places, up] = kept
            return kept
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
        return self._tables[places, up]

    def keep(self, folder: FilePath) -> None:
        """Keep the tables of draws in a folder for the next process, in place of those of another set.

        What cannot be written is made again.
        """
        path = self._file(folder, self.tracked, False)
        for other in folder.glob("feasible-*.npz"):
            if other != path:
                other.unlink(missing_ok=True)
        if not path.is_file():
            with contextlib.suppress(RunError), whole(path, sync=False) as temporary, temporary.open("wb") as file:
                np.savez(file, *self._counts(self.tracked))

    def _kept(self, places: tuple[int, ...], up: bool, side: int) -> list[np.ndarray] | None:
        """The tables that an earlier process kept; None where there are none, or the file is damaged."""
        if self._folder is None or not (path := self._file(self._folder, places, up)).is_file():
            return None
        states = [len(layer.first) - 1 for layer in self.layers] + [1]
        try:
            with path.open("rb") as file, np.load(file) as stored:
                found = [stored[f"arr_{number}"] for number in range(len(self.layers) + 1)]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        fits = all(table.shape == (n, *(side + 1,) * len(places)) for n, table in zip(states, found, strict=True))
        return found if fits else None

    def _file(self, folder: FilePath, places: tuple[int, ...], up: bool) -> FilePath:
        marks = [self.key[:16], *map(str, places), *(["up"] if up else [])]
        return folder / f"feasible-{'-'.join(marks)}.npz"

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of what the set is made of: steps, costs and limits, so of space, tables and budgets."""
        digest = hashlib.sha256(repr((BINS, [item.limit for item in self.sums])).encode())
        for number, layer in enumerate(self.layers):
            for array in (layer.first, layer.target, *(item.costs[number] for item in self.sums)):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _most(self) -> float:
        """How many candidates the tables of draws hold: those that fit, and some beyond by less than a bin."""
        if any(item.slack < 0 for item in self._reduced):
            return 0.0
        places = self.tracked
        return float(self._counts(places)[0][(0, *(-1,) * len(places))])

    @functools.cached_property
    def listed(self) -> np.ndarray | None:
        """All candidates that fit, where the tables hold few; None where they hold many. Shape: (n, layers)"""
        if self._most > LISTED:
            return None
        paths, states = np.zeros((1, 0), np.int64), np.zeros(1, np.int64)
        if not self._most:
            return np.zeros((0, len(self.layers)), np.int64)
        side = BINS[len(self.tracked) - 1]
        taken = [self._reduced[place].bins(side) for place in self.tracked]
        left = [np.full(1, side) for _ in taken]
        for index, layer in enumerate(self.layers):
            line, steps = _onward(layer, states)
            rest = [have[line] - bins[index][steps] for have, bins in zip(left, taken, strict=True)]
            ok = np.logical_and.reduce([item >= 0 for item in rest])
            ways_on = self._counts(self.tracked)[index + 1]
            ok &= ways_on[(layer.target[steps], *(np.maximum(item, 0) for item in rest))] > 0
            paths = np.concatenate([paths[line[ok]], steps[ok, None]], axis=1)
            states, left = layer.target[steps[ok]], [item[ok] for item in rest]
        return np.asarray(paths[self.fitting(paths)])

    @functools.cached_property
    def _paired(self) -> int | None:
        """How many keep the budgets on sums, the two of them that bind most where they are more, exactly: beginnings
        and ends of paths, paired over the steps of one layer. None where these are too many.
        """
        order = self._order[:2]
        costs = [np.stack([self.sums[place].costs[n] for place in order]) for n in range(len(self.layers))]
        limits = np.array([[self.sums[place].limit] for place in order])
        states = [len(layer.first) - 1 for layer in self.layers] + [1]
        ends = [np.ones(1)]
        for layer in reversed(self.layers):
            ends.append(np.add.reduceat(ends[-1][layer.target], layer.first[:-1]))
        ends.reverse()
        begins: list[np.ndarray] = [np.ones(1)]
        for layer, width in zip(self.layers, states[1:], strict=True):
            begins.append(np.bincount(layer.target, begins[-1][layer.source], width))
        work = [begins[n].sum() + begins[n + 1].sum() + (ends[n + 1] ** len(order)).sum() for n in range(len(costs))]
        at = int(np.argmin(work))
        if work[at] > PAIRS:
            return None
        before = [np.zeros((len(order), 1))]
        for layer, cost, width in zip(self.layers[:at], costs[:at], states[1 : at + 1], strict=True):
            found: list[list[np.ndarray]] = [[np.zeros((len(order), 0))] for _ in range(width)]
            for step, (source, target) in enumerate(zip(layer.source, layer.target, strict=True)):
                found[target].append(before[source] + cost[:, step, None])
            joined = [np.concatenate(parts, axis=1) for parts in found]
            before = [points[:, np.argsort(points[0])] for points in joined]  # neighbours are looked up faster
        behind = [np.zeros((len(order), 1))]
        for layer, cost in zip(reversed(self.layers[at + 1 :]), reversed(costs[at + 1 :]), strict=True):
            parts = [behind[target] + cost[:, step, None] for step, target in enumerate(layer.target)]
            behind = [np.concatenate(parts[a:b], axis=1) for a, b in itertools.pairwise(layer.first.tolist())]
        layer, cost, total = self.layers[at], costs[at], 0
        for target, points in enumerate(behind):
            within = _Within(points)
            for step in np.flatnonzero(layer.target == target).tolist():
                total += within.count(limits - cost[:, step, None] - before[layer.source[step]])
        return total

    def count(self) -> tuple[float, float]:
        """How many candidates keep the budgets, at least and at most: twice the same, an int, where it is exact."""
        return self._bounds

    @functools.cached_property
    def _bounds(self) -> tuple[float, float]:
        if not any(item.binds for item in self._reduced) and self.check is None:
            return (self.size_of_all(),) * 2
        if self.listed is not None:
            return (len(self.listed),) * 2
        paired = None if self.check is not None and not self._order else self._paired
        if paired is not None and self.check is None and len(self._order) <= 2:
            return paired, paired
        most = self._most if paired is None else min(paired, self._most)
        if self.check is not None or set(self._order) - set(self.tracked):
            return 0.0, most
        return float(self._counts(self.tracked, up=True)[0][(0, *(-1,) * len(self.tracked))]), most

    @functools.cached_property
    def about(self) -> float:
        """How many candidates keep the budgets: exact where that is known, else the upper bound times the share of the
        tables' draws that fit.
        """
        least, most = self._bounds
        if least == most:
            return most
        drawn = self._superset(np.random.default_rng(0), 4000, self.tracked)
        return max(least, self._most * float(self.fitting(drawn).mean()))

    @functools.cached_property
    def is_empty(self) -> bool:
        """Whether no candidate keeps all budgets; where many come close, as far as a search finds none."""
        if self._most and self.fits(self.closest()):
            return False
        return len(self.listed) == 0 if self.listed is not None else not (self.about or self.smallest())

    def share_of(self, place: int) -> float:
        """The share of all candidates that keeps one of the budgets on sums."""
        return self._most_alone(place) / self.size_of_all()

    # draws

    def _superset(self, rng: np.random.Generator, count: int, places: tuple[int, ...]) -> np.ndarray:
        """Even draws of what keeps the tracked budgets up to the width of a bin. Shape: (count, layers)"""
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

    def draw(self, rng: np.random.Generator, count: int = 1) -> np.ndarray:
        """Draws with replacement, every candidate that fits as likely as any other. Shape: (count, layers)

        Raises:
            BudgetError: nothing that fits was found.
        """
        if self.listed is not None:
            if not len(self.listed):
                raise BudgetError("no network keeps all budgets")
            return self.listed[rng.integers(len(self.listed), size=count)]
        found: list[np.ndarray] = []
        have = drawn = 0
        while have < count:
            batch = self._superset(
                rng, min(int(1.2 * (count - have) * (drawn + 1) / (have + 1)) + 8, BATCH), self.tracked
            )
            drawn += len(batch)
            found.append(batch[self.fitting(batch)])
            have += len(found[-1])
            if drawn - have > DRAWS * (have + 1):
                raise BudgetError(
                    f"of {drawn} networks drawn from those that come close, {have} keep all budgets: too few to search "
                    "among. Loosen one of the budgets"
                )
        return np.concatenate(found)[:count]

    def unseen(self, rng: np.random.Generator, seen: Collection[Path]) -> Path | None:
        """An even draw of the candidates that fit and are not among these; None where there are no further ones."""
        for count in (4, 32, 64):
            for path in self.draw(rng, count):
                if (found := tuple(map(int, path))) not in seen:
                    return found
        if self.listed is not None:
            left = [path for path in map(tuple, self.listed.tolist()) if path not in seen]
        else:
            left = self.best([np.zeros(len(layer.way)) for layer in self.layers], 64, seen)
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
                windows = np.lib.stride_tricks.sliding_window_view(padded, side + 1, axis=1)
                begins = np.maximum(side + 1 - cost, 0)
                for one in range(0, len(here), STATES_AT_ONCE):
                    two = min(one + STATES_AT_ONCE, len(here))
                    steps = slice(layer.first[one], layer.first[two])
                    values = windows[layer.target[steps], begins[steps]]
                    values += score[steps, None]
                    np.maximum.reduceat(values, layer.first[one:two] - steps.start, axis=0, out=here[one:two])
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
        """Candidates that fit, best first; those that it settles for in the end are the best of these."""
        numbers = itertools.count()
        heap: list[tuple[float, int, int, _Node]] = []  # bound, depth: ties go to the longest beginning

        def push(node: _Node | None) -> None:
            if node is not None:
                heapq.heappush(heap, (-node.bound, -len(node.path), next(numbers), node))

        push(self._onward((), 0, 0.0, 0.0, tuple(self.slacks)))
        for _ in range(EXPANSIONS + len(exclude)):
            if not heap:
                return
            *_, node = heapq.heappop(heap)
            push(node.next())
            longer, behind = self._taken(node)
            if behind is not None:
                push(behind)
            elif len(longer) == len(self.set.layers) and longer not in exclude and self.set.fits(longer):
                yield longer
        found: dict[Path, float] = {}
        for *_, node in heapq.nsmallest(DIVES, heap):
            longer, behind = self._taken(node)
            while behind is not None:
                score = float(behind.gained[behind.order[0]])
                longer, behind = self._taken(behind)
            if len(longer) == len(self.set.layers) and longer not in exclude and self.set.fits(longer):
                found[longer] = score
        yield from sorted(found, key=found.__getitem__, reverse=True)

    def _onward(self, path: Path, state: int, score: float, paid: float, left: tuple[float, ...]) -> _Node | None:
        """The ways on from a beginning, those of the largest bound first; None where there are none."""
        index, side = len(path), BINS_OF_BEST
        layer = self.set.layers[index]
        steps = slice(int(layer.first[state]), int(layer.first[state + 1]))
        widths = [max(slack, 1e-300) for slack in self.slacks]
        rest = [have - item.steps[index][steps] for have, item in zip(left, self.reduced, strict=True)]
        ok = np.ones(steps.stop - steps.start, bool)
        for item, width in zip(rest, widths, strict=True):
            ok &= item >= -SLACK * width
        gained, paid_now = score + self.scores[index][steps], paid + self.priced[index][steps]
        bound = gained
        if index < len(self.set.layers) - 1:
            bins: Any = 0
            if self.first is not None:
                bins = np.clip((rest[0] / widths[0] * side * (1 + SLACK)).astype(int), 0, side)
            price = sum(weight * slack for weight, slack in zip(self.weights, self.slacks, strict=True))
            bound = paid_now + self.tables[index + 1][layer.target[steps], bins] + price
        bound = np.where(ok, bound, -np.inf)
        order = np.argsort(-bound, kind="stable")[: int(np.isfinite(bound).sum())]
        return _Node(path, steps.start, order, bound, rest, gained, paid_now) if len(order) else None

    def _taken(self, node: _Node) -> tuple[Path, _Node | None]:
        """The path with a node's best step, and the ways on from there."""
        step = int(node.order[node.at])
        longer = (*node.path, node.start + step)
        if len(longer) == len(self.set.layers):
            return longer, None
        left = tuple(float(item[step]) for item in node.rest)
        state = int(self.set.layers[len(node.path)].target[node.start + step])
        return longer, self._onward(longer, state, float(node.gained[step]), float(node.paid[step]), left)


@dataclass(frozen=True)
class _Node:
    """Ways on from a beginning, of which the first `at` were taken.

    Attributes:
        path: the beginning.
        start: the first step of its state; the others are by step from there on.
        order: steps, those of the largest bound first.
        bounds: on the score of the whole path.
        rest: what is left of each budget behind a step.
        gained: the score so far.
        paid: the same, less the weighted costs of budgets.
    """

    path: Path
    start: int
    order: np.ndarray
    bounds: np.ndarray
    rest: list[np.ndarray]
    gained: np.ndarray
    paid: np.ndarray
    at: int = 0

    @property
    def bound(self) -> float:
        return float(self.bounds[self.order[self.at]])

    def next(self) -> _Node | None:
        """The same with one step more taken; None where there is no further one."""
        return replace(self, at=self.at + 1) if self.at + 1 < len(self.order) else None
