"""Lattices: a set of candidates as ways through layers of states, in arrays.

A space becomes a lattice with a layer for each stage, from the walk over its states; a list of candidates becomes one
of a single layer. A way through is a path: one step a layer, as whole numbers. Distinct paths are distinct candidates,
and whatever is a sum over blocks is a sum over steps, so that questions about sums are answered for all candidates at
once (`nas.search.feasible`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import sparse

import search_spaces
from nas.core.arch import Arch, Blocks
from nas.core.errors import InputError
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import macs_of_unit, params_of_unit

Path = tuple[int, ...]
Costs = list[np.ndarray]  # of every step, layer by layer


@dataclass(frozen=True)
class Layer:
    """The steps of one layer, those of a state next to each other.

    Attributes:
        first: (states + 1,) where the steps of each state begin.
        target: (steps,) the state behind each step; 0 behind the last layer.
        way: (steps,) what each step lays: steps from different states may lay the same.
        names: of the choices of the layer.
        codes: (ways, names) place of a way's value in `values`, -1 where it has no such choice.
        values: of each name.
    """

    first: np.ndarray
    target: np.ndarray
    way: np.ndarray
    names: tuple[str, ...]
    codes: np.ndarray
    values: tuple[tuple[Any, ...], ...]

    @functools.cached_property
    def source(self) -> np.ndarray:
        """(steps,) the state before each step."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    @functools.cached_property
    def step_of(self) -> np.ndarray:
        """(states, ways) the step from a state that lays a way, -1 where there is none."""
        table = np.full((len(self.first) - 1, len(self.codes)), -1, np.int32)
        table[self.source, self.way] = np.arange(len(self.way))
        return table

    @functools.cached_property
    def _spans(self) -> np.ndarray:
        return np.array([max(len(values) - 1, 1) for values in self.values])

    @functools.cached_property
    def _kind(self) -> int | None:
        return self.names.index("kind") if "kind" in self.names else None

    def distances(self, code: np.ndarray) -> np.ndarray:
        """How far each way is from a code: one half for every other value, up to one half more for how far it lies off;
        another kind counts for two. Shape: (names,) -> (ways,)
        """
        both = (self.codes >= 0) & (code >= 0)
        off = np.abs(self.codes - code) / self._spans
        far = np.where(both & (self.codes != code), 0.5 + 0.5 * off, 0.0)
        total: np.ndarray = far.sum(1)
        if self._kind is not None:
            total += 2.0 * (self.codes[:, self._kind] != code[self._kind])
        return total

    def changed(self, way: int) -> np.ndarray:
        """Which choices a change of a way to another one changes; of another kind only that. Shape: (ways, names)"""
        code = self.codes[way]
        other: np.ndarray = self.codes != code
        if self._kind is not None:
            kinds = other[:, self._kind].copy()  # not a view: the next line clears it
            other[kinds] = False
            other[kinds, self._kind] = True
        return other

    def mixed(self, one: int, two: int, rng: np.random.Generator) -> np.ndarray:
        """A code with the choices of either way, of one of both where the kinds differ. Shape: (names,)"""
        mine, theirs = self.codes[one], self.codes[two]
        if self._kind is not None and mine[self._kind] != theirs[self._kind]:
            return np.asarray(mine if rng.random() < 0.5 else theirs)
        return np.asarray(np.where(rng.random(len(mine)) < 0.5, mine, theirs))


class Lattice(Protocol):
    """What a set of candidates is to those who search it: layers, features that are sums over steps, and parameters.

    Attributes:
        layers: in order.
        space: what the candidates are archs of, None for a list.
    """

    layers: list[Layer]
    space: Any

    def groups(self) -> dict[str, list[sparse.csr_matrix]]:
        """Features of every step that sum to features of candidates, by group: (steps, features) for each layer."""

    def names(self) -> dict[str, list[str]]:
        """The names of the features of each group."""

    def params_of(self, path: Path) -> dict[str, Any]:
        """The parameters of a candidate."""

    def path_of(self, params: Mapping[str, Any]) -> Path:
        """The candidate that parameters choose.

        Raises:
            InputError: they choose none.
        """


def sums(costs: Costs, paths: np.ndarray) -> np.ndarray:
    """The sum of the costs of steps along paths. Shape: (n, layers) -> (n,)"""
    total = np.zeros(len(paths))
    for layer, cost in enumerate(costs):
        total += cost[paths[:, layer]]
    return total


def _coded(picks: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], np.ndarray, tuple[tuple[Any, ...], ...]]:
    """Names, codes and values of the choices of ways; names without a choice are left out."""
    found: dict[str, dict[Any, None]] = {}
    for pick in picks:
        for name, value in pick.items():
            if value is None or isinstance(value, (int, float, str)):
                found.setdefault(name, {})[value] = None
    values = {name: _ordered(seen) for name, seen in found.items() if len(seen) > 1}
    codes = np.full((len(picks), len(values)), -1, np.int32)
    for column, (name, known) in enumerate(values.items()):
        place = {value: number for number, value in enumerate(known)}
        for line, pick in enumerate(picks):
            if name in pick and pick[name] in place:
                codes[line, column] = place[pick[name]]
    return tuple(values), codes, tuple(values.values())


def _ordered(values: Mapping[Any, None]) -> tuple[Any, ...]:
    numbers = all(isinstance(value, (int, float)) for value in values)
    return tuple(sorted(values) if numbers else values)


def _one_hot(layer: Layer, prefix: str) -> tuple[sparse.csr_matrix, list[str]]:
    """The choices of every way as zeros and ones, those of different kinds apart, and their names."""
    kind = layer.names.index("kind") if "kind" in layer.names else None
    columns: dict[str, int] = {}
    lines, places = [], []
    for line, code in enumerate(layer.codes):
        of = "" if kind is None else f"{layer.values[kind][code[kind]]}."
        for column, place in enumerate(code):
            if place < 0:
                continue
            plain = f"{prefix}{layer.names[column]}={layer.values[column][place]}"
            named = [plain] if kind in (None, column) else [f"{prefix}{of}{plain.removeprefix(prefix)}", plain]
            for name in named:
                lines.append(line)
                places.append(columns.setdefault(name, len(columns)))
    shape = (len(layer.codes), len(columns))
    return sparse.csr_matrix((np.ones(len(lines)), (lines, places)), shape=shape), list(columns)


def _beside(blocks: Sequence[sparse.csr_matrix]) -> list[sparse.csr_matrix]:
    """Features of one layer each, side by side."""
    width, at, found = sum(block.shape[1] for block in blocks), 0, []
    for block in blocks:
        moved = sparse.csr_matrix((block.data, block.indices + at, block.indptr), shape=(block.shape[0], width))
        found.append(moved)
        at += block.shape[1]
    return found


SIZES = ("log of multiply-adds", "log of parameters", "root of multiply-adds", "root of parameters")


def _kinds(rows: Sequence[Row]) -> list[str]:
    return sorted({type(row.unit).__name__ for row in rows})


def _traits(rows: Sequence[Row]) -> tuple[sparse.csr_matrix, list[str]]:
    """What rows have in common, as zeros and ones: their kind, and with it each field and each size of their inputs.

    Shape: (rows, traits)
    """
    columns: dict[str, int] = {}
    lines, places = [], []
    for line, row in enumerate(rows):
        kind, *fields = str(row.unit).split()
        sizes = [f"in{axis}={size}" for shape in row.inputs[:1] for axis, size in enumerate(shape)]
        for trait in (kind, *(f"{kind} {item}" for item in (*fields, *sizes))):
            lines.append(line)
            places.append(columns.setdefault(trait, len(columns)))
    shape = (len(rows), len(columns))
    return sparse.csr_matrix((np.ones(len(lines)), (lines, places)), shape=shape), list(columns)


def _sizes(rows: Sequence[Row]) -> sparse.csr_matrix:
    """The sizes of rows on several scales, those of each kind apart. Shape: (rows, kinds * len(SIZES))"""
    kinds = _kinds(rows)
    both = np.array([(macs_of_unit(row), params_of_unit(row)) for row in rows], float)
    scaled = np.concatenate([np.log1p(both), np.sqrt(both)], axis=1)
    scaled /= np.maximum(scaled.std(0), 1e-12)
    at = np.array([kinds.index(type(row.unit).__name__) for row in rows])
    lines, columns = np.repeat(np.arange(len(rows)), len(SIZES)), at[:, None] * len(SIZES) + np.arange(len(SIZES))
    shape = (len(rows), len(kinds) * len(SIZES))
    return sparse.csr_matrix((scaled.ravel(), (lines, columns.ravel())), shape=shape)


class ArchLattice:
    """A space as a lattice; its features are counts of rows and of their traits, their sizes, and choices.

    Args:
        space: compiled from its walk, which takes seconds where there are many steps.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.rows: tuple[Row, ...] = space.all_rows()
        numbers = {row: number for number, row in enumerate(self.rows)}
        known: dict[int, int] = {}  # by identity, which spares most hashes; the walk keeps the rows alive
        self.layers: list[Layer] = []
        self._counts: list[sparse.csr_matrix] = []
        self._ways: list[list[tuple[Blocks, Blocks]]] = []
        self._way_of: list[dict[Blocks, list[int]]] = []
        for index, layer in enumerate(space._walk):
            behind = {state: number for number, state in enumerate(space._walk[index + 1])} if self._more(index) else {}
            steps = [step for found in layer.values() for step in found]
            ways: dict[tuple[int, int], int] = {}
            picks: list[dict[str, Any]] = []
            blocks: list[tuple[Blocks, Blocks]] = []
            way: list[int] = []
            for step in steps:
                key = (id(step.blocks), step.picked["tail"])
                if key not in ways:
                    ways[key] = len(picks)
                    picks.append(step.picked)
                    blocks.append((step.blocks, step.head))
                way.append(ways[key])
            same: dict[tuple[Blocks, int], int] = {}
            merged = [
                same.setdefault((item[0], pick["tail"]), n)
                for n, (item, pick) in enumerate(zip(blocks, picks, strict=True))
            ]
            dense = {n: number for number, n in enumerate(dict.fromkeys(merged))}
            order = [dense[merged[n]] for n in range(len(merged))]
            kept = list(dense)
            names, codes, values = _coded([picks[n] | _shared_pick(blocks[n][0], space.shared) for n in kept])
            indices, pointers = [], [0]
            for step in steps:
                for row in step.rows:
                    if (number := known.get(id(row))) is None:
                        number = known[id(row)] = numbers[row]
                    indices.append(number)
                pointers.append(len(indices))
            counts = sparse.csr_matrix((np.ones(len(indices)), indices, pointers), shape=(len(steps), len(self.rows)))
            counts.sum_duplicates()
            self._counts.append(counts)
            self.layers.append(
                Layer(
                    np.cumsum([0, *map(len, layer.values())]),
                    np.array([behind[step.state] if behind else 0 for step in steps]),
                    np.array(order, np.int32)[way],
                    names,
                    codes,
                    values,
                )
            )
            self._ways.append([blocks[n] for n in kept])
            found: dict[Blocks, list[int]] = {}
            for number, n in enumerate(kept):
                found.setdefault(blocks[n][0], []).append(number)
            self._way_of.append(found)

    def _more(self, index: int) -> bool:
        return index + 1 < len(self.space.stages)

    def costs(self, cost: Callable[[Row], float]) -> Costs:
        """What every step adds to a sum over rows."""
        per_row = np.array([cost(row) for row in self.rows])
        return [counts @ per_row for counts in self._counts]

    def most(self, costs: Costs) -> float:
        """The largest sum of costs over a path."""
        behind = np.zeros(1)
        for layer, cost in zip(reversed(self.layers), reversed(costs), strict=True):
            behind = np.maximum.reduceat(cost + behind[layer.target], layer.first[:-1])
        return float(behind[0])

    @functools.cached_property
    def _groups(self) -> tuple[dict[str, list[sparse.csr_matrix]], dict[str, list[str]]]:
        hot = [_one_hot(layer, f"stage{number}.") for number, layer in enumerate(self.layers, 1)]
        choices = [one[layer.way] for (one, _), layer in zip(hot, self.layers, strict=True)]
        traits, named = _traits(self.rows)
        sizes = _sizes(self.rows)
        groups = {
            "rows": self._counts,
            "traits": [sparse.csr_matrix(counts @ traits) for counts in self._counts],
            "sizes": [sparse.csr_matrix(counts @ sizes) for counts in self._counts],
            "choices": _beside(choices),
        }
        names = {
            "rows": list(map(str, self.rows)),
            "traits": [f"blocks {trait}" for trait in named],
            "sizes": [f"{what} of {kind}" for kind in _kinds(self.rows) for what in SIZES],
            "choices": [name for _, found in hot for name in found],
        }
        return groups, names

    def groups(self) -> dict[str, list[sparse.csr_matrix]]:
        """See `Lattice`."""
        return self._groups[0]

    def names(self) -> dict[str, list[str]]:
        """See `Lattice`."""
        return self._groups[1]

    def arch(self, path: Path) -> Arch:
        """The arch of a path."""
        laid = [ways[int(layer.way[step])] for ways, layer, step in zip(self._ways, self.layers, path, strict=True)]
        stages = (*(blocks for blocks, _ in laid), laid[-1][1])
        return Arch(self.space.name, self.space.input_shape, self.space.classes, stages)

    def params_of(self, path: Path) -> dict[str, Any]:
        """See `Lattice`."""
        return self.space.params_of(self.arch(path))

    def path_of_arch(self, arch: Arch) -> Path:
        """The path of an arch.

        Raises:
            InputError: it is no point of the space.
        """
        if arch.input_shape == self.space.input_shape:
            for path in self._laying(arch.stages[:-1]):
                if self.arch(path).stages == arch.stages:
                    return path
        raise InputError(f"arch {arch.id} is no point of space {self.space.name}")

    def _laying(self, stages: Sequence[Blocks]) -> list[Path]:
        """The paths that lay these stages."""
        beginnings: list[tuple[Path, int]] = [((), 0)] if len(stages) == len(self.layers) else []
        for layer, ways, blocks in zip(self.layers, self._way_of, stages, strict=False):
            beginnings = [
                ((*path, int(step)), int(layer.target[step]))
                for path, state in beginnings
                for way in ways.get(blocks, ())
                if (step := layer.step_of[state, way]) >= 0
            ]
        return [path for path, _ in beginnings]

    def presets(self) -> dict[str, Path]:
        """The published networks that are points of the space, whatever the classes of its head, by name; at another
        side than its family's those that are at that one.
        """
        published = search_spaces.spaces().get(self.space.name, self.space).input_shape
        modules = map(search_spaces.family, search_spaces.families())
        mine = [m for m in modules if self.space.name in {s.name for s in (m.SPACE, *getattr(m, "SPACES", ()))}]
        translate = next((getattr(m, "from_family", None) for m in mine), None) or (lambda arch: arch)
        found = {}
        for name, arch in sorted(search_spaces.presets().items()):
            with contextlib.suppress(InputError):
                same = translate(arch)
                if arch.input_shape == published and (paths := self._laying(same.stages[:-1])):
                    found[name] = paths[0]
        return found

    def path_of(self, params: Mapping[str, Any]) -> Path:
        """See `Lattice`."""
        return self.path_of_arch(self.space.arch(params))


def _shared_pick(blocks: Blocks, shared: Iterable[str]) -> dict[str, Any]:
    """The fields of a stage's blocks that are chosen once for a net, where a block shows them."""
    shown = {name: [getattr(block, name) for block in blocks if name in block.names()] for name in shared}
    return {name: seen[0] for name, seen in shown.items() if seen}


class ListLattice:
    """Listed candidates as a lattice of one layer; its features are their choices.

    Args:
        params: of each candidate; all have the same names.
        name: of the list.
        candidates: what each of them is to the engine; the parameters as pairs where none are given.
    """

    def __init__(self, params: Sequence[Mapping[str, Any]], name: str = "list", archs: Sequence[Any] = ()) -> None:
        if not params:
            raise InputError(f"{name}: no candidates")
        self.space, self.name = None, name
        self._params = [dict(item) for item in params]
        self._archs = list(archs)
        names, codes, values = _coded(self._params)
        count = np.arange(len(params))
        layer = Layer(np.array([0, len(params)]), np.zeros(len(params), int), count, names, codes, values)
        self.layers = [layer]
        self._path_of = {tuple(sorted(item.items())): (number,) for number, item in enumerate(self._params)}

    @functools.cached_property
    def _hot(self) -> tuple[sparse.csr_matrix, list[str]]:
        return _one_hot(self.layers[0], "")

    def groups(self) -> dict[str, list[sparse.csr_matrix]]:
        """See `Lattice`."""
        return {"choices": [self._hot[0]]}

    def names(self) -> dict[str, list[str]]:
        """See `Lattice`."""
        return {"choices": self._hot[1]}

    def params_of(self, path: Path) -> dict[str, Any]:
        """See `Lattice`."""
        return dict(self._params[path[0]])

    def path_of(self, params: Mapping[str, Any]) -> Path:
        """See `Lattice`."""
        try:
            return self._path_of[tuple(sorted(params.items()))]
        except KeyError:
            raise InputError(f"{self.name} has no candidate with {dict(params)}") from None
