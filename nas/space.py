"""Spaces: one declaration gives parameters, sampling, mutation, counting, every row it can need and exact extremes.

A `Space` is a row of stages; a stage has an entry block, which changes resolution and width, and then its body blocks.
The last `tail` blocks of the whole net are of their stage's tail kind (EfficientFormer's MB3D). Questions about the
whole space (rows, number of archs, smallest latency) are answered exactly by walking the states between stages, not by
sampling.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nas.arch import Arch, Blocks, calls_of
from nas.errors import InputError, suggest
from nas.ops import Block, Choice, Row, Shape, Unit
from nas.tracing import calls_of_unit

if TYPE_CHECKING:
    import numpy as np

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """An entry block and the blocks behind it.

    Attributes:
        entry: the block that changes resolution and width; its `cout` is the stage's width.
        body: the block that fills the stage.
        width: choice of channels.
        depth: choice of the number of blocks behind the entry.
        tail: kind of block that the last blocks of the net take in this stage, None where they may not reach it.
    """

    entry: Block
    body: Block
    width: Any
    depth: Any
    tail: Block | None = None

    def choices(self) -> dict[str, Choice]:
        """Everything that can be chosen here, by name: width, depth, and the open fields of the blocks."""
        found = {"width": _as_choice(self.width), "depth": _as_choice(self.depth)}
        for block in (self.entry, self.body, *([self.tail] if self.tail else [])):
            for name, choice in block.open_fields().items():
                if found.setdefault(name, choice) != choice:
                    raise InputError(
                        f"{type(block).__name__}.{name}: {choice} here, {found[name]} before, in one stage"
                    )
        return found

    def blocks(self, picked: Params, tail: int) -> Blocks:
        """The resolved blocks, the last `tail` of them of the tail kind."""
        values = tuple({"cout": picked["width"], **picked}.items())
        kinds = (self.entry, self.body, self.tail or self.body)
        entry, body, last = (cast(Block, _resolve(kind, values)) for kind in kinds)
        return (entry, *[body] * (picked["depth"] - tail), *[last] * tail)

    def picked(self, blocks: Blocks) -> tuple[dict[str, Any], int]:
        """Invert `blocks`: the choices and the number of tail blocks; fields nobody uses take their first value."""
        tail_type = type(self.tail) if self.tail is not None else None
        tail = sum(type(block) is tail_type for block in blocks[1:])
        values: dict[str, Any] = {"width": getattr(blocks[0], "cout", None), "depth": len(blocks) - 1}
        for name, choice in self.choices().items():
            if name not in values:
                seen = [getattr(block, name) for block in blocks if hasattr(block, name)]
                values[name] = seen[0] if seen else choice.values[0]
        return values, tail


def _as_choice(value: Any) -> Choice:
    return value if isinstance(value, Choice) else Choice((value,))


class State(NamedTuple):
    """What a stage needs to know of the stages before it."""

    shapes: tuple[Shape, ...]
    width: int
    tail: int  # tail blocks so far; once begun, every later block is one


class Step(NamedTuple):
    """One way through a stage: its blocks, their rows, and the state behind it."""

    blocks: Blocks
    rows: tuple[Row, ...]
    state: State


@dataclass(frozen=True)
class Space:
    """A declared set of architectures.

    Attributes:
        name: what requests, tables and arch files call it.
        input_shape: (C, H, W) of one image.
        classes: number of logits.
        stages: the stages in order.
        head: the blocks behind the last stage; the space fills in their `classes`.
        tail: choice of how many of the last blocks of the net are of the tail kind; a number beyond what the stages
            allow means as many as they allow.
        monotone: widths never fall from stage to stage; a smaller one is lifted to the next legal width.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    stages: tuple[Stage, ...]
    head: Blocks
    tail: Any = 0
    monotone: bool = True

    def __post_init__(self) -> None:
        values = _as_choice(self.tail).values
        if sorted(values) != list(range(min(values), max(values) + 1)) or min(values) not in (0, 1):
            raise InputError(f"space {self.name}: tail: expected every number from 0 or 1 up to some end, got {values}")
        if any(min(stage.choices()["depth"].values) < 1 for stage in self.stages):
            raise InputError(f"space {self.name}: depth: every stage needs at least one block behind its entry")

    @functools.cached_property
    def choices(self) -> dict[str, Choice]:
        """The fixed set of parameters: `stage1.width`, `stage1.depth`, ..., `tail`; the same for every trial."""
        found: dict[str, Choice] = {}
        for number, stage in enumerate(self.stages, 1):
            found |= {f"stage{number}.{name}": choice for name, choice in stage.choices().items()}
        if self._tail_reach:
            found["tail"] = _as_choice(self.tail)
        return {name: choice for name, choice in found.items() if len(choice.values) > 1}

    @functools.cached_property
    def _tail_reach(self) -> int:
        """How many stages at the end of the net may hold tail blocks."""
        reach = itertools.takewhile(lambda stage: stage.tail is not None, reversed(self.stages))
        return sum(1 for _ in reach) if max(_as_choice(self.tail).values) else 0

    def arch(self, params: Params) -> Arch:
        """The architecture that these parameters choose; choices that contradict each other are settled (see class).

        Raises:
            InputError: naming a parameter that is unknown, missing, or has no such value.
        """
        for name, value in params.items():
            if name not in self.choices:
                raise InputError(f"space {self.name}: {suggest('parameter', name, self.choices)}")
            if value not in self.choices[name].values:
                legal = ", ".join(map(str, self.choices[name].values))
                raise InputError(f"space {self.name}: {name}: expected one of {legal}; got {value!r}")
        if missing := [name for name in self.choices if name not in params]:
            raise InputError(f"space {self.name}: no value for {', '.join(missing)}")
        picks = [self._pick(number, stage, params) for number, stage in enumerate(self.stages, 1)]
        self._lift_widths(picks)
        tails = self._share_tail(picks, params.get("tail", max(_as_choice(self.tail).values)))
        stages = [stage.blocks(pick, tail) for stage, pick, tail in zip(self.stages, picks, tails, strict=True)]
        return Arch(self.name, self.input_shape, self.classes, (*stages, self._head))

    @functools.cached_property
    def _head(self) -> Blocks:
        return tuple(cast(Block, _resolve(block, (("classes", self.classes),))) for block in self.head)

    def _pick(self, number: int, stage: Stage, params: Params) -> dict[str, Any]:
        choices = stage.choices()
        return {name: params.get(f"stage{number}.{name}", choice.values[0]) for name, choice in choices.items()}

    def _lift_widths(self, picks: list[dict[str, Any]]) -> None:
        if not self.monotone:
            return
        least = 0
        for number, (stage, pick) in enumerate(zip(self.stages, picks, strict=True), 1):
            legal = [width for width in stage.choices()["width"].values if width >= least]
            if not legal:
                raise InputError(f"space {self.name}: stage {number} has no width of at least {least}")
            pick["width"] = pick["width"] if pick["width"] >= least else min(legal)
            least = pick["width"]

    def _share_tail(self, picks: list[dict[str, Any]], tail: int) -> list[int]:
        shares = [0] * len(picks)
        for index in reversed(range(len(picks) - self._tail_reach, len(picks))):
            shares[index] = min(tail, picks[index]["depth"])
            tail -= shares[index]
        return shares

    def params_of(self, arch: Arch) -> dict[str, Any]:
        """The canonical parameters of an arch: `self.arch(params_of(arch)) == arch`.

        Raises:
            InputError: where the arch is no point of this space, saying what differs.
        """
        if len(arch.stages) != len(self.stages) + 1 or not all(arch.stages):
            raise InputError(f"arch {arch.id} has {len(arch.stages) - 1} stages, space {self.name} {len(self.stages)}")
        params: dict[str, Any] = {}
        tails = 0
        for number, (stage, blocks) in enumerate(zip(self.stages, arch.stages, strict=False), 1):
            values, tail = stage.picked(blocks)
            tails += tail
            params |= {f"stage{number}.{name}": value for name, value in values.items()}
        params["tail"] = tails
        params = {name: value for name, value in params.items() if name in self.choices}
        again = self.arch(params)
        if again != arch:
            raise InputError(f"arch {arch.id} is no point of space {self.name}: {_difference(arch, again)}")
        return params

    def __contains__(self, arch: Arch) -> bool:
        try:
            self.params_of(arch)
        except InputError:
            return False
        return True

    def sample(self, rng: random.Random) -> Arch:
        """A random arch: every parameter drawn evenly from its values."""
        return self.arch({name: rng.choice(choice.values) for name, choice in self.choices.items()})

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """A neighbour of `arch`: one parameter redrawn, and never the same arch.

        Raises:
            InputError: for a space of one arch.
        """
        params = self.params_of(arch)
        moves = [(name, v) for name, choice in self.choices.items() for v in choice.values if v != params[name]]
        rng.shuffle(moves)
        for name, value in moves:
            neighbour = self.arch(params | {name: value})
            if neighbour != arch:
                return neighbour
        raise InputError(f"space {self.name} has no other arch than {arch.id}")

    def _steps(self, index: int, state: State) -> Iterator[Step]:
        """Every distinct way through stage `index` from a state."""
        stage, least, most = self.stages[index], *_range(self.tail)
        reaches, is_last = index >= len(self.stages) - self._tail_reach, index == len(self.stages) - 1
        choices = stage.choices()
        seen = set()
        for values in itertools.product(*(choice.values for choice in choices.values())):
            picked = dict(zip(choices, values, strict=True))
            if self.monotone and picked["width"] < state.width:
                continue
            depth = picked["depth"]
            shares = (depth,) if state.tail else range(depth + 1) if reaches else (0,)
            for share in shares:
                total = state.tail + share
                blocks = stage.blocks(picked, share)
                if total > most or (is_last and total < least and reaches) or blocks in seen:
                    continue
                seen.add(blocks)
                rows, shapes = _rows_of(blocks, state.shapes)
                yield Step(blocks, rows, State(shapes, picked["width"], total))

    @functools.cached_property
    def _walk(self) -> list[dict[State, list[Step]]]:
        """For every stage the states before it, each with its steps; states that lead to no arch are left out."""
        layers: list[dict[State, list[Step]]] = []
        states = [State((Shape(1, *self.input_shape),), 0, 0)]
        for index in range(len(self.stages)):
            layers.append({state: list(self._steps(index, state)) for state in states})
            states = list(dict.fromkeys(step.state for steps in layers[-1].values() for step in steps))
        alive = set(states)
        for index in reversed(range(len(layers))):
            kept = {s: [step for step in steps if step.state in alive] for s, steps in layers[index].items()}
            layers[index] = {state: steps for state, steps in kept.items() if steps}
            alive = set(layers[index])
        return layers

    def rows(self) -> tuple[Row, ...]:
        """Every row at block level that any arch of this space can need, sorted by their text."""
        found = {row for layer in self._walk for steps in layer.values() for step in steps for row in step.rows}
        ends = {step.state.shapes for steps in self._walk[-1].values() for step in steps}
        found |= {row for shapes in ends for row in _rows_of(self._head, shapes)[0]}
        return tuple(sorted(found, key=str))

    def op_rows(self) -> tuple[Row, ...]:
        """Every row at op level that any arch of this space can need."""
        return tuple(sorted({call.row for row in self.rows() for call in calls_of_unit(row).ops}, key=str))

    def count(self) -> int:
        """The number of distinct archs, exactly."""
        counts = {step.state: 1 for steps in self._walk[-1].values() for step in steps}
        for layer in reversed(self._walk):
            counts = {state: sum(counts[step.state] for step in steps) for state, steps in layer.items()}
        return sum(counts.values())

    def archs(self) -> Iterator[Arch]:
        """All distinct archs, for spaces small enough to list."""

        def below(index: int, state: State) -> Iterator[tuple[Blocks, ...]]:
            if index == len(self.stages):
                yield (self._head,)
                return
            for step in self._walk[index][state]:
                for rest in below(index + 1, step.state):
                    yield (step.blocks, *rest)

        for stages in below(0, next(iter(self._walk[0]))):
            yield Arch(self.name, self.input_shape, self.classes, stages)

    def extreme(self, cost: Callable[[Row], float], largest: bool = False) -> tuple[float, Arch]:
        """The smallest (or largest) sum of row costs over all archs, and an arch that reaches it; exact.

        A shortest path over the states between stages (shapes, width, tail), so it takes no sampling.
        """
        price = functools.lru_cache(maxsize=None)(cost)
        sign = -1.0 if largest else 1.0
        ends = {step.state for steps in self._walk[-1].values() for step in steps}
        best: dict[State, tuple[float, tuple[Blocks, ...]]] = {
            state: (sign * sum(map(price, _rows_of(self._head, state.shapes)[0])), (self._head,)) for state in ends
        }
        for layer in reversed(self._walk):
            reached = {}
            for state, steps in layer.items():
                totals = [sign * sum(map(price, step.rows)) + best[step.state][0] for step in steps]
                at = min(range(len(steps)), key=totals.__getitem__)
                reached[state] = (totals[at], (steps[at].blocks, *best[steps[at].state][1]))
            best = reached
        total, stages = min(best.values(), key=lambda item: item[0])
        return sign * total, Arch(self.name, self.input_shape, self.classes, stages)

    def encode(self, archs: Iterable[Arch]) -> np.ndarray:
        """Archs as a matrix of row numbers, archs x slots, int32: an index into `rows()`, or `len(rows())` where a
        slot is empty because the arch is shallower. `Table.price_matrix` prices it.
        """
        import numpy as np

        lists = [[self._row_numbers[call.row] for call in calls_of(arch)] for arch in archs]
        matrix = np.full((len(lists), max(map(len, lists), default=0)), len(self._row_numbers), dtype=np.int32)
        for line, numbers in zip(matrix, lists, strict=True):
            line[: len(numbers)] = numbers
        return matrix

    @functools.cached_property
    def _row_numbers(self) -> dict[Row, int]:
        return {row: number for number, row in enumerate(self.rows())}


def _range(tail: Any) -> tuple[int, int]:
    values = _as_choice(tail).values
    return min(values), max(values)


def _rows_of(blocks: Blocks, shapes: tuple[Shape, ...]) -> tuple[tuple[Row, ...], tuple[Shape, ...]]:
    """The rows of blocks in sequence from these input shapes, and the shapes behind them."""
    rows = []
    for block in blocks:
        rows.append(Row(block, shapes))
        shapes = calls_of_unit(rows[-1]).outputs
    return tuple(rows), shapes


@functools.cache
def _resolve(unit: Unit, values: tuple[tuple[str, Any], ...]) -> Unit:
    return unit.resolved(dict(values))  # one object per block, so that look-ups compare identities


def _difference(arch: Arch, other: Arch) -> str:
    for index, (mine, theirs) in enumerate(zip(arch.stages, other.stages, strict=True)):
        for number, (block, legal) in enumerate(itertools.zip_longest(mine, theirs)):
            if block != legal:
                return f"stage {arch.stage_name(index)}, block {number}: {block}; the nearest arch has {legal}"
    return f"input {arch.input_shape} and {arch.classes} classes; the space has {other.input_shape}, {other.classes}"
