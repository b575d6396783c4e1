"""Spaces: one declaration gives parameters, sampling, mutation, counting, every row it can need and exact extremes.

A `Space` is a row of stages. A stage lays its blocks from the values of its choices: `Repeat` is an entry block and one
body block repeated, `Either` picks one of several stages, and families bring patterns of their own. Questions about the
whole space (rows, number of archs, smallest latency) are answered exactly by walking the states between stages, not by
sampling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nas.core.arch import Arch, Blocks, steps_of
from nas.core.errors import InputError, NasError, suggest
from nas.core.ops import Block, Choice, FromStage, Row, Shape, Unit, parse_row
from nas.core.remembered import Remembered, remembered
from nas.core.source import code_of
from nas.core.tracing import calls_of_unit

if TYPE_CHECKING:
    import numpy as np

Params = Mapping[str, Any]
Names = frozenset[str]
DRAWS = 1000  # of parameters, of which one has to be an arch of a part of a space
MOST_KNOWN = 1 << 14  # stages whose choices are remembered


@dataclass(frozen=True)
class Stage:
    """Base of all stages: how the blocks between two places in a network follow from a few choices.

    Its fields are values, choices (`one_of`) or blocks, whose open fields are choices of the stage as well. Two blocks
    with an open field of one name share the choice. Every stage has a `width`.
    """

    def lay(self, picked: Params, streams: Names) -> Blocks:
        """The resolved blocks.

        Args:
            picked: by name, a value for every choice, the fixed fields of the stage, what the net shares, and `tail`.
            streams: names of the streams that reach the stage.
        """
        raise NotImplementedError

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        """What blocks say about choices that are no field of a block, such as a depth; others are found by trial."""
        return {}

    def settled(self, picked: Params) -> dict[str, Any]:
        """The values that count, where others are legal somewhere else only."""
        return dict(picked)

    def widths(self, picked: Params) -> tuple[int, ...]:
        """The widths that can be chosen beside the other values."""
        return values_of(self.fixed.get("width", self.choices.get("width")))

    def variants(self) -> Iterator[dict[str, Any]]:
        """All combinations of the choices."""
        choices = self.choices
        for values in itertools.product(*(choice.values for choice in choices.values())):
            yield dict(zip(choices, values, strict=True))

    @functools.cached_property
    def choices(self) -> dict[str, Choice]:
        """Everything that can be chosen here, by name: open fields of the stage and of its blocks."""
        found: dict[str, Choice] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            here = {item.name: value} if isinstance(value, Choice) else {}
            here |= value.open_fields() if isinstance(value, Block) else {}
            for name, choice in here.items():
                if found.setdefault(name, choice) != choice:
                    where = f"{type(self).__name__}: {name}"
                    raise InputError(f"{where}: {choice} here, {found[name]} before, in one stage")
        return found

    @functools.cached_property
    def fixed(self) -> dict[str, Any]:
        """The fields of the stage that are neither choices nor blocks."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if not isinstance(value, (Choice, Block))}

    def picked(self, blocks: Blocks, streams: Names, shared: Params) -> dict[str, Any]:
        """Invert `lay`: values of the choices (and `tail`) that give these blocks, where there are any.

        Choices that no block shows take their first value.
        """
        known = self.hints(blocks)
        tries: dict[str, Sequence[Any]] = {}
        for name, choice in self.choices.items():
            seen = (known[name],) if name in known else (getattr(b, name) for b in blocks if name in b.names())
            shown = list(dict.fromkeys(seen))
            own = name in {item.name for item in dataclasses.fields(self)}
            legal = [value for value in shown if value in choice.values]
            tries[name] = legal or (choice.values if own and not shown else choice.values[:1])
        tail = {"tail": known["tail"]} if "tail" in known else {}
        first: dict[str, Any] = {}
        for values in itertools.product(*tries.values()):
            found = dict(zip(tries, values, strict=True)) | tail
            first = first or found
            if self.lays({**shared, **found}, streams) == blocks:
                return found
        return first

    def lays(self, picked: Params, streams: Names) -> Blocks | None:
        """The blocks, with the fixed fields added to what is picked; None where the values give no legal blocks."""
        try:
            return self.lay({**self.fixed, "tail": 0, **picked}, streams)
        except InputError:
            return None


def fill(block: Block, picked: Params, **fixed: Any) -> Block:
    """A block with its open and `from_stage` fields taken from `fixed`, else from `picked`."""
    values = ((name, fixed[name] if name in fixed else picked[name]) for name in _unfilled(block))
    return cast(Block, _resolve(block, tuple(values)))


@dataclass(frozen=True)
class Repeat(Stage):
    """An entry block and one block repeated behind it.

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

    def __post_init__(self) -> None:
        if min(values_of(self.depth)) < 1:
            raise InputError("depth: every stage needs at least one block behind its entry")

    def lay(self, picked: Params, streams: Names) -> Blocks:
        entry, body = fill(self.entry, picked, cout=picked["width"]), fill(self.body, picked, cout=picked["width"])
        tail = picked["tail"] if self.tail is not None else 0
        last = fill(self.tail or self.body, picked, cout=picked["width"])
        return (entry, *[body] * (picked["depth"] - tail), *[last] * tail)

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        tail = sum(self.tail is not None and type(block) is type(self.tail) for block in blocks[1:])
        return {"width": getattr(blocks[0], "cout", None), "depth": len(blocks) - 1, "tail": tail}


@dataclass(frozen=True)
class Either(Stage):
    """One of several stages, chosen by name: `kind`.

    A choice that several of them have is one parameter over all their values; where the chosen stage has not the value,
    it takes its next larger one, or else its largest.

    Attributes:
        kinds: the stages by name, as pairs.
    """

    kinds: tuple[tuple[str, Stage], ...]

    @classmethod
    def of(cls, **kinds: Stage) -> Either:
        """A stage of one of these."""
        return cls(tuple(kinds.items()))

    @functools.cached_property
    def choices(self) -> dict[str, Choice]:
        values: dict[str, set[Any]] = {name: set() for _, stage in self.kinds for name in stage.choices}
        for _, stage in self.kinds:
            for name, found in values.items():
                found |= set(stage.choices[name].values) if name in stage.choices else set()
                found |= {stage.fixed[name]} if name in stage.fixed else set()
        kinds = Choice([kind for kind, _ in self.kinds])
        return {"kind": kinds} | {name: Choice(sorted(found)) for name, found in values.items()}

    @functools.cached_property
    def fixed(self) -> dict[str, Any]:
        return {}

    def _kind(self, picked: Params) -> Stage:
        return dict(self.kinds)[picked["kind"]]

    def settled(self, picked: Params) -> dict[str, Any]:
        stage = self._kind(picked)
        legal = {name: _nearest(choice.values, picked[name]) for name, choice in stage.choices.items()}
        return {**picked, **stage.fixed, **legal}

    def widths(self, picked: Params) -> tuple[int, ...]:
        return self._kind(picked).widths(picked)

    def variants(self) -> Iterator[dict[str, Any]]:
        for kind, stage in self.kinds:
            yield from ({**stage.fixed, "kind": kind, **variant} for variant in stage.variants())

    def lay(self, picked: Params, streams: Names) -> Blocks:
        return self._kind(picked).lay(picked, streams)

    def picked(self, blocks: Blocks, streams: Names, shared: Params) -> dict[str, Any]:
        first = {name: choice.values[0] for name, choice in self.choices.items()}
        for kind, stage in self.kinds:
            found = stage.picked(blocks, streams, shared)
            if stage.lays({**shared, **found}, streams) == blocks:
                return first | found | {"kind": kind}
        return first


def _nearest(values: Sequence[Any], wanted: Any) -> Any:
    return wanted if wanted in values else min((value for value in values if value >= wanted), default=max(values))


def values_of(value: Any) -> tuple[Any, ...]:
    """The values of a choice; a single value where there is none."""
    return value.values if isinstance(value, Choice) else (value,)


class State(NamedTuple):
    """What a stage needs to know of the stages before it."""

    streams: tuple[tuple[str, Shape], ...]
    width: int  # or its place, see `Space.rise`; 0 where widths are free
    tail: int  # tail blocks so far; once begun, every later block is one
    shared: tuple[tuple[Any, ...], ...]  # the shared values that give the blocks so far


class Laid(NamedTuple):
    """One way to lay a stage."""

    picked: dict[str, Any]
    blocks: Blocks
    tail: int
    shared: tuple[tuple[Any, ...], ...]


class Step(NamedTuple):
    """One way through a stage: its blocks, their rows (see `Space.all_rows`), the state behind it, behind the last
    stage the head, and the choices of the stage that give it.
    """

    blocks: Blocks
    rows: tuple[Row, ...]
    state: State
    head: Blocks
    picked: dict[str, Any]


@dataclass(frozen=True)
class Space:
    """A declared set of architectures.

    Attributes:
        name: what requests, tables and arch files call it.
        input_shape: (C, H, W) of one image.
        classes: number of logits.
        stages: the stages in order.
        head: the blocks behind the last stage, or a function from the last stage's blocks to them; the space fills in
            their `classes`.
        tail: choice of how many of the last blocks of the net are of the tail kind; a number beyond what the stages
            allow means as many as they allow.
        monotone: widths never fall from stage to stage; a smaller one is lifted to the next legal width.
        rise: instead, a width stands at the place in its stage's list where the one before stands in its own, or up to
            this many places further; others go to the nearest such place. None for no such rule.
        shared: choices made once per net, such as the number and width of Mobile-Former's tokens; stages read them.
        settle: takes shared values that do not go together to some that do; None where all do.
        whole: the space that this one is a part of (`nas.core.parts`); places of widths are counted in its stages.
        held: the choices that are held to some of their values in this part, with those.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    stages: tuple[Stage, ...]
    head: Blocks | Callable[[Blocks], Blocks]
    tail: Any = 0
    monotone: bool = True
    rise: int | None = None
    shared: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settle: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    whole: Space | None = None
    held: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def __post_init__(self) -> None:
        values = values_of(self.tail)
        without_gaps = sorted(values) == list(range(min(values), max(values) + 1)) and min(values) in (0, 1)
        if self.whole is None and not without_gaps:
            raise InputError(f"space {self.name}: tail: expected every number from 0 or 1 up to some end, got {values}")

    @functools.cached_property
    def choices(self) -> dict[str, Choice]:
        """The fixed set of parameters: `stage1.width`, `stage1.depth`, ..., `tail`; the same for every trial."""
        found: dict[str, Choice] = {}
        for number, stage in enumerate(self.stages, 1):
            found |= {f"stage{number}.{name}": choice for name, choice in stage.choices.items()}
        found |= {name: Choice(values_of(choice)) for name, choice in self.shared.items()}
        if self._tail_reach:
            found["tail"] = Choice(values_of(self.tail))
        return {name: choice for name, choice in found.items() if len(choice.values) > 1}

    @functools.cached_property
    def _tail_reach(self) -> int:
        """How many stages at the end of the net may hold tail blocks."""
        reach = itertools.takewhile(lambda stage: getattr(stage, "tail", None) is not None, reversed(self.stages))
        return sum(1 for _ in reach) if max(values_of(self.tail)) else 0

    def arch(self, params: Params) -> Arch:
        """The architecture that these parameters choose; choices that contradict each other are settled (see class).

        Raises:
            InputError: naming a parameter that is unknown, missing, or has no such value; or these together are no
                network of a part of a space.
        """
        for name, value in params.items():
            if name not in self.choices:
                raise InputError(f"space {self.name}: {suggest('parameter', name, self.choices)}")
            if value not in self.choices[name].values:
                legal = ", ".join(map(str, self.choices[name].values))
                raise InputError(f"space {self.name}: {name}: expected one of {legal}; got {value!r}")
        if missing := [name for name in self.choices if name not in params]:
            raise InputError(f"space {self.name}: no value for {', '.join(missing)}")
        shared = self._settled({name: params.get(name, values_of(c)[0]) for name, c in self.shared.items()})
        picks = [self._pick(number, stage, params) for number, stage in enumerate(self.stages, 1)]
        self._place_widths(picks)
        tails = self._share_tail(picks, params.get("tail", max(values_of(self.tail))))
        if self._tail_reach and sum(tails) not in values_of(self.tail):
            raise InputError(f"space {self.name}: depths leave room for a tail of {sum(tails)} only")
        streams: Names = frozenset(["x"])
        stages: list[Blocks] = []
        for stage, pick, tail in zip(self.stages, picks, tails, strict=True):
            stages.append(stage.lay({**stage.fixed, **shared, **pick, "tail": tail}, streams))
            streams = _given(stages[-1], streams)
        return Arch(self.name, self.input_shape, self.classes, (*stages, self._head_behind(stages[-1])))

    def _head_behind(self, last: Blocks) -> Blocks:
        blocks = self.head(last) if callable(self.head) else self.head
        return tuple(fill(block, {"classes": self.classes}) for block in blocks)

    def _settled(self, shared: dict[str, Any]) -> dict[str, Any]:
        found = self.settle(shared) if self.settle is not None else shared
        if self.whole is None or tuple(found[name] for name in self.shared) in self._all_shared:
            return found
        legal = (dict(zip(self.shared, values, strict=True)) for values in self._all_shared)
        return max(legal, key=lambda values: sum(values[name] == found[name] for name in values))

    def _pick(self, number: int, stage: Stage, params: Params) -> dict[str, Any]:
        choices = stage.choices
        return stage.settled({n: params.get(f"stage{number}.{n}", choice.values[0]) for n, choice in choices.items()})

    def _place_widths(self, picks: list[dict[str, Any]]) -> None:
        before = 0
        for number, (stage, ladder, pick) in enumerate(zip(self.stages, self._ladders, picks, strict=True), 1):
            widths, all_widths = stage.widths(pick), ladder.widths(pick)
            pick.setdefault("width", widths[0])
            legal = [
                width for width in self._legal_widths(all_widths, before if number > 1 else None) if width in widths
            ]
            if not legal:
                raise InputError(f"space {self.name}: stage {number} has no width that may follow the one before it")
            pick["width"] = _nearest(legal, pick["width"])
            before = self._measure_of_width(all_widths, pick["width"])

    @property
    def _ladders(self) -> tuple[Stage, ...]:
        """The stages in whose widths places are counted."""
        return self.stages if self.whole is None else self.whole.stages

    def _legal_widths(self, widths: Sequence[int], before: int | None) -> Sequence[int]:
        """The widths that may follow; `before` is what `_measure_of_width` gave, None for the first stage."""
        if before is None or not (self.monotone or self.rise is not None):
            return widths
        if self.rise is not None:
            return widths[min(before, len(widths) - 1) : before + self.rise + 1]
        return [width for width in widths if width >= before]

    def _measure_of_width(self, widths: Sequence[int], width: int) -> int:
        return widths.index(width) if self.rise is not None else width if self.monotone else 0

    def _share_tail(self, picks: list[dict[str, Any]], tail: int) -> list[int]:
        shares = [0] * len(picks)
        for index in reversed(range(len(picks) - self._tail_reach, len(picks))):
            stage = cast(Repeat, self.stages[index])
            shares[index] = min(tail, picks[index].get("depth", stage.depth))
            tail -= shares[index]
        return shares

    def params_of(self, arch: Arch) -> dict[str, Any]:
        """The canonical parameters of an arch: `self.arch(params_of(arch)) == arch`.

        Raises:
            InputError: where the arch is no point of this space, saying what differs.
        """
        if len(arch.stages) != len(self.stages) + 1 or not all(arch.stages):
            raise InputError(f"arch {arch.id} has {len(arch.stages) - 1} stages, space {self.name} {len(self.stages)}")
        params = shared = self.shared_of(arch)
        streams: Names = frozenset(["x"])
        tails = 0
        for number, blocks in enumerate(arch.stages[:-1], 1):
            values = dict(self._picked(number, blocks, streams, shared))
            tails += values.pop("tail", 0)
            params = params | {f"stage{number}.{name}": value for name, value in values.items()}
            streams = _given(blocks, streams)
        params["tail"] = tails
        params = {name: params[name] for name in self.choices if name in params}
        try:
            again = self.arch(params)
        except InputError as error:
            raise InputError(f"arch {arch.id} is no point of space {self.name}: {error}") from error
        if again != arch:
            raise InputError(f"arch {arch.id} is no point of space {self.name}: {_difference(arch, again)}")
        return params

    def _picked(self, number: int, blocks: Blocks, streams: Names, shared: Params) -> dict[str, Any]:
        """What `Stage.picked` finds, by trial of many values, and found once: archs of a search share most stages."""
        key = number, blocks, streams, tuple(shared.items())
        if key not in self._known_stages:
            if len(self._known_stages) == MOST_KNOWN:
                self._known_stages.clear()
            self._known_stages[key] = self.stages[number - 1].picked(blocks, streams, shared)
        return self._known_stages[key]

    @functools.cached_property
    def _known_stages(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {}

    def shared_of(self, arch: Arch) -> dict[str, Any]:
        """The shared choices of an arch: the values of the fields of these names in its blocks, the first of a choice
        where no block has it. To be overridden where other blocks have a field of such a name.
        """
        blocks = [block for stage in arch.stages for block in stage]
        seen = {name: [getattr(b, name) for b in blocks if name in b.names()] for name in self.shared}
        return {name: seen[name][0] if seen[name] else values_of(c)[0] for name, c in self.shared.items()}

    def __contains__(self, arch: Arch) -> bool:
        try:
            self.params_of(arch)
        except InputError:
            return False
        return True

    def sample(self, rng: random.Random) -> Arch:
        """A random arch: every parameter drawn evenly from its values; again where they are no arch of a part.

        Raises:
            InputError: no draw is one.
        """
        for _ in range(1 if self.whole is None else DRAWS):
            try:
                return self.arch({name: rng.choice(choice.values) for name, choice in self.choices.items()})
            except InputError as error:
                problem = error
        raise problem

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """A neighbour of `arch`: one parameter redrawn, and never the same arch.

        Raises:
            InputError: for a space of one arch.
        """
        params = self.params_of(arch)
        moves = [(name, v) for name, choice in self.choices.items() for v in choice.values if v != params[name]]
        rng.shuffle(moves)
        for name, value in moves:
            with contextlib.suppress(InputError):  # no arch of a part
                if (neighbour := self.arch(params | {name: value})) != arch:
                    return neighbour
        raise InputError(f"space {self.name} has no other arch than {arch.id}")

    def _laid(self, index: int, streams: Names, shared: tuple[tuple[Any, ...], ...]) -> list[Laid]:
        """Every distinct way to lay stage `index`, whatever the shapes that reach it."""
        stage = self.stages[index]
        reaches = index >= len(self.stages) - self._tail_reach
        found: dict[tuple[Blocks, int], Laid] = {}
        for variant in stage.variants():
            picked = {**stage.fixed, **variant}
            for tail in range(picked["depth"] + 1) if reaches else (0,):
                for blocks, values in self._by_shared(stage, {**picked, "tail": tail}, streams, shared).items():
                    found.setdefault((blocks, tail), Laid({**picked, "tail": tail}, blocks, tail, values))
        return list(found.values())

    def _by_shared(
        self, stage: Stage, picked: dict[str, Any], streams: Names, shared: tuple[tuple[Any, ...], ...]
    ) -> dict[Blocks, tuple[tuple[Any, ...], ...]]:
        """The blocks under each of these shared values; equal ones once, with all the values that give them."""
        found: dict[Blocks, tuple[tuple[Any, ...], ...]] = {}
        for values in shared:
            asked = _Asked({**dict(zip(self.shared, values, strict=True)), **picked})
            blocks = stage.lay(asked, streams)
            if not asked.names & self.shared.keys():
                return {blocks: shared}
            found[blocks] = (*found.get(blocks, ()), values)
        return found

    @functools.cached_property
    def _all_shared(self) -> tuple[tuple[Any, ...], ...]:
        """The legal combinations of shared values."""
        products = itertools.product(*(values_of(choice) for choice in self.shared.values()))
        combined = (dict(zip(self.shared, values, strict=True)) for values in products)
        settled = [self.settle(values) if self.settle is not None else values for values in combined]
        kept = (
            values
            for values in settled
            if self.whole is None or all(values[name] in values_of(choice) for name, choice in self.shared.items())
        )
        return tuple(dict.fromkeys(tuple(values[name] for name in self.shared) for values in kept))

    def _steps(self, index: int, state: State, laid: Iterable[Laid]) -> Iterator[Step]:
        """Every distinct way through stage `index` from a state.

        What is left out: widths that the stage before does not allow; a block of another kind behind one of the tail
        (the tail is the end of the net, however many stages it reaches back); and more, or at the end fewer, blocks of
        the tail than the space allows.
        """
        ladder, tails = self._ladders[index], values_of(self.tail)
        reaches, is_last = index >= len(self.stages) - self._tail_reach, index == len(self.stages) - 1
        for way in laid:
            widths, width = ladder.widths(way.picked), way.picked["width"]
            if width not in self._legal_widths(widths, state.width if index else None):
                continue
            total = state.tail + way.tail
            if state.tail and way.tail < way.picked["depth"]:  # once begun, every later block is one
                continue
            if total > max(tails) or (is_last and reaches and total not in tails):
                continue
            rows, streams = _rows_behind(way.blocks, state.streams)
            head = self._head_behind(way.blocks) if is_last else ()
            rows += _rows_behind(head, streams)[0]
            measure = self._measure_of_width(widths, width)
            yield Step(way.blocks, rows, State(streams, measure, total, way.shared), head, way.picked)

    @functools.cached_property
    def _walk(self) -> list[dict[State, list[Step]]]:
        """For every stage the states before it, each with its steps; states that lead to no arch are left out."""
        layers: list[dict[State, list[Step]]] = []
        states = [State((("x", Shape(1, *self.input_shape)),), 0, 0, self._all_shared)]
        for index in range(len(self.stages)):
            laid = functools.cache(functools.partial(self._laid, index))
            layers.append({s: list(self._steps(index, s, laid(_names(s.streams), s.shared))) for s in states})
            states = list(dict.fromkeys(step.state for steps in layers[-1].values() for step in steps))
        alive = set(states)
        for index in reversed(range(len(layers))):
            kept = {s: [step for step in steps if step.state in alive] for s, steps in layers[index].items()}
            layers[index] = {state: steps for state, steps in kept.items() if steps}
            alive = set(layers[index])
        return layers

    def rows(self) -> tuple[Row, ...]:
        """Every row at block level that a table has to hold for any arch of this space, sorted by their text."""
        return self._rows

    def all_rows(self) -> tuple[Row, ...]:
        """`rows`, and behind them those of blocks without ops: they take no time, but may have parameters."""
        return self._all_rows

    @functools.cached_property
    def _rows(self) -> tuple[Row, ...]:
        return tuple(row for row in self.all_rows() if calls_of_unit(row).ops)

    @functools.cached_property
    def _all_rows(self) -> tuple[Row, ...]:
        found = self._read_rows("all rows") or self._keep_rows("all rows", self._walked_rows())
        return tuple(sorted(found, key=lambda row: not calls_of_unit(row).ops))  # which keeps the order of the others

    def _walked_rows(self) -> set[Row]:
        found: set[Row] = set()
        for layer in self._walk:
            for steps in layer.values():
                found.update(*(step.rows for step in steps))
        return found

    def op_rows(self) -> tuple[Row, ...]:
        """Every row at op level that any arch of this space can need."""
        return self._op_rows

    @functools.cached_property
    def _op_rows(self) -> tuple[Row, ...]:
        name = "op rows"
        return self._read_rows(name) or self._keep_rows(
            name, {call.row for row in self.rows() for call in calls_of_unit(row).ops}
        )

    def count(self) -> int:
        """The number of distinct archs, exactly."""
        return self._count

    @functools.cached_property
    def _count(self) -> int:
        memory, text = self._memory
        known = memory.get(f"count {text}")
        if known is None:
            memory.put(f"count {text}", known := self._walked_count())
        return int(known)

    def _walked_count(self) -> int:
        counts = {step.state: 1 for steps in self._walk[-1].values() for step in steps}
        for layer in reversed(self._walk):
            counts = {state: sum(counts[step.state] for step in steps) for state, steps in layer.items()}
        return sum(counts.values())

    @functools.cached_property
    def _memory(self) -> tuple[Remembered, str]:
        """Where answers about this space are remembered, and the text that names it there."""
        modules: set[str] = set()
        try:
            text = _spell(self, modules)
        except TypeError:
            return remembered(None), ""
        return remembered(code_of(*sorted(modules))), text

    def _read_rows(self, name: str) -> tuple[Row, ...]:
        memory, text = self._memory
        try:
            return tuple(map(parse_row, memory.get(f"{name} {text}") or ()))
        except InputError:  # an op that is not loaded here
            return ()

    def _keep_rows(self, name: str, found: Iterable[Row]) -> tuple[Row, ...]:
        rows = tuple(sorted(found, key=str))
        memory, text = self._memory
        with contextlib.suppress(InputError):
            written = [str(row) for row in rows]
            if tuple(map(parse_row, written)) == rows:
                memory.put(f"{name} {text}", written)
        return rows

    def archs(self) -> Iterator[Arch]:
        """All distinct archs, for spaces small enough to list."""

        def below(index: int, state: State) -> Iterator[tuple[Blocks, ...]]:
            if index == len(self.stages):
                yield ()
                return
            for step in self._walk[index][state]:
                for rest in below(index + 1, step.state):
                    yield (step.blocks, *rest, step.head) if step.head else (step.blocks, *rest)

        for stages in below(0, next(iter(self._walk[0]))):
            yield Arch(self.name, self.input_shape, self.classes, stages)

    def extreme(self, cost: Callable[[Row], float], largest: bool = False) -> tuple[float, Arch]:
        """The smallest (or largest) sum of costs of `all_rows` over all archs, and an arch that reaches it; exact.

        A shortest path over the states between stages, so it takes no sampling.
        """
        price = functools.lru_cache(maxsize=None)(cost)
        sign = -1.0 if largest else 1.0
        ends = {step.state for steps in self._walk[-1].values() for step in steps}
        best: dict[State, tuple[float, tuple[Blocks, ...]]] = dict.fromkeys(ends, (0.0, ()))
        for layer in reversed(self._walk):
            reached = {}
            for state, steps in layer.items():
                totals = [sign * sum(map(price, step.rows)) + best[step.state][0] for step in steps]
                at = min(range(len(steps)), key=totals.__getitem__)
                step = steps[at]
                behind = (step.head,) if step.head else best[step.state][1]
                reached[state] = (totals[at], (step.blocks, *behind))
            best = reached
        total, stages = min(best.values(), key=lambda item: item[0])
        return sign * total, Arch(self.name, self.input_shape, self.classes, stages)

    def encode(self, archs: Iterable[Arch]) -> np.ndarray:
        """Archs as a matrix of row numbers, archs x slots, int32: an index into `all_rows()`, or their number where a
        slot is empty because the arch is shallower. `Table.price_matrix` prices it.
        """
        import numpy as np

        lists = [[self._row_numbers[call.row] for call in steps_of(arch)] for arch in archs]
        matrix = np.full((len(lists), max(map(len, lists), default=0)), len(self._row_numbers), dtype=np.int32)
        for line, numbers in zip(matrix, lists, strict=True):
            line[: len(numbers)] = numbers
        return matrix

    @functools.cached_property
    def _row_numbers(self) -> dict[Row, int]:
        return {row: number for number, row in enumerate(self.all_rows())}


class _Asked(dict[str, Any]):
    """Values that remember which of them were asked for."""

    def __init__(self, values: Params) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def _names(streams: tuple[tuple[str, Shape], ...]) -> Names:
    return frozenset(name for name, _ in streams)


def _given(blocks: Blocks, streams: Names) -> Names:
    return streams.union(*(block.gives for block in blocks))


def _rows_behind(
    blocks: Blocks, streams: tuple[tuple[str, Shape], ...]
) -> tuple[tuple[Row, ...], tuple[tuple[str, Shape], ...]]:
    """The rows of blocks in sequence from these streams, and the streams behind them."""
    rows: list[Row] = []
    for block in blocks:
        row, streams = _row_behind(block, streams)
        rows.append(row)
    return tuple(rows), streams


@functools.cache
def _row_behind(block: Block, streams: tuple[tuple[str, Shape], ...]) -> tuple[Row, tuple[tuple[str, Shape], ...]]:
    shapes = dict(streams)
    row = Row(block, tuple(shapes[name] for name in block.takes))
    try:
        call = calls_of_unit(row)
    except (NasError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{block} does not take {', '.join(map(str, row.inputs))}: {error}") from error
    shapes.update(zip(block.gives, call.outputs, strict=True))
    return row, tuple(sorted(shapes.items()))


_unfilled = functools.cache(Block.unfilled)


def _spell(value: Any, modules: set[str]) -> str:
    """A value in words that name it and no other, and the modules that define what it is made of.

    Raises:
        TypeError: for what has no such words, such as a lambda.
    """
    if value is None or isinstance(value, (int, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({''.join(f'{_spell(item, modules)},' for item in value)})"
    if isinstance(value, Mapping):
        return f"{{{''.join(f'{name}={_spell(item, modules)},' for name, item in value.items())}}}"
    if isinstance(value, Choice):
        return f"one_of{_spell(value.values, modules)}"
    named = value if isinstance(value, FunctionType) else type(value)
    if getattr(sys.modules.get(named.__module__), named.__qualname__, None) is not named:
        raise TypeError(f"{named} is no name of its module")
    modules.update(cls.__module__ for cls in getattr(named, "__mro__", (named,))[:-1] or (named,))
    name = f"{named.__module__}.{named.__qualname__}"
    if not dataclasses.is_dataclass(value):
        if isinstance(value, FunctionType) or named is FromStage:
            return name
        raise TypeError(f"{named} is no plain data")
    fields = (f"{item.name}={_spell(getattr(value, item.name), modules)}," for item in dataclasses.fields(value))
    return f"{name}({''.join(fields)})"


@functools.cache
def _resolve(unit: Unit, values: tuple[tuple[str, Any], ...]) -> Unit:
    return unit.resolved(dict(values))  # one object per block, so that look-ups compare identities


def _difference(arch: Arch, other: Arch) -> str:
    for index, (mine, theirs) in enumerate(zip(arch.stages, other.stages, strict=True)):
        for number, (block, legal) in enumerate(itertools.zip_longest(mine, theirs)):
            if block != legal:
                return f"stage {arch.stage_name(index)}, block {number}: {block}; the nearest arch has {legal}"
    return f"input {arch.input_shape} and {arch.classes} classes; the space has {other.input_shape}, {other.classes}"
