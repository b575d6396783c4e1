"""What is timed for a row: graphs of a few rows, and the weights with which their times give the time of the row.

A block alone pays for the call, and for bringing its input and output into the layout that the runtime likes. So a row
is timed inside a graph and the rest is subtracted. With T(...) the time of rows in sequence:

- a row whose outputs fit its own inputs: the slope of a chain, (T(r^k) - T(r)) / (k - 1);
- such a row with many weights: (T(r^k) - T(nothing)) / k, where the chain has about the weights of a whole network, so
  that caches hold as much of them as they do there; a single r would be served from a nearer cache than in a network;
- a bridge, which only joins streams beside other blocks: behind a row p that chains on its map,
  T((p r)^k) - T(p^k), each as the slope of a chain; alone it would not pay for the layout that convolutions want;
- another row between two such rows p and q, on either side: T(p r q) - (T(p p) + T(q q)) / 2, where the call, the
  input side of p and the output side of q cancel to first order;
- the last row of a network: T(p p r) - T(p p);
- the first row, which reads the image: T(r q) - slope of q; it keeps what one call costs outside the blocks, so that
  the rows of a network sum to its time.

Rows in sequence are wired by the streams that their blocks take and give, as in a network. A row fits itself where what
it gives and takes keeps its shape: one that takes (x, z) and gives z is chained on z, with the same x for all.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.core.arch import Arch, calls_of
from nas.core.ops import Block, Leaf, Row, Scale, Shape, parse_unit
from nas.core.tracing import BYTES_PER_VALUE, calls_of_unit, fuse_in_place, macs_of_unit, params_of_unit
from nas.networks.building import build
from nas.networks.foreign import Foreign

LONG_CHAIN, CHAIN, SHORT_CHAIN = 8, 4, 2
SHORT_MACS = 5_000_000  # rows below this are over in some 0.2 ms: a longer chain lifts them above the clock's noise


@dataclass(frozen=True)
class Probe:
    """A graph that is timed: rows in sequence, a whole network or model; none of them for an empty graph.

    Attributes:
        rows: in order, wired as `wire` says.
        arch: a whole network, None for rows.
        model: one of timm or torchvision.
        idle: input shapes of an empty graph.
    """

    rows: tuple[Row, ...] = ()
    arch: Arch | None = None
    idle: tuple[Shape, ...] = ()
    model: Foreign | None = None

    @classmethod
    def of(cls, network: Arch | Foreign) -> Probe:
        """That of a whole network or model."""
        return cls(arch=network) if isinstance(network, Arch) else cls(model=network)

    @functools.cached_property
    def key(self) -> str:
        """Names the probe in files of samples."""
        if self.arch is not None:
            return f"network {self.arch.id}"
        if self.model is not None:
            return f"model {self.model.id}"
        parts: list[tuple[int, Row]] = []
        for row in self.rows:
            repeats = parts.pop()[0] + 1 if parts and parts[-1][1] == row else 1
            parts.append((repeats, row))
        return " > ".join(f"{count} x {row}" for count, row in parts) or f"idle @ {' '.join(map(str, self.idle))}"

    @property
    def whole(self) -> bool:
        """Whether it is a whole network."""
        return self.arch is not None or self.model is not None

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Bytes of its parameters, fp32."""
        if self.model is not None:
            return BYTES_PER_VALUE * self.model.cost().params
        return BYTES_PER_VALUE * sum(map(params_of_unit, self._all_rows))

    @functools.cached_property
    def macs(self) -> int:
        """Its multiply-adds."""
        if self.model is not None:
            return self.model.cost().macs
        return sum(map(macs_of_unit, self._all_rows))

    @property
    def _all_rows(self) -> Sequence[Row]:
        return self.rows if self.arch is None else [call.row for call in calls_of(self.arch)]

    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the inputs of the graph."""
        if self.arch is not None:
            return (Shape(1, *self.arch.input_shape),)
        if self.model is not None:
            return (Shape(1, *self.model.input_shape),)
        return wire(self.rows).input_shapes if self.rows else self.idle

    def module(self, seed: int) -> nn.Module:
        """The graph in deployed form, with fresh random weights of its own for every row."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.model is not None:
                return self.model.module()
            if self.arch is not None:
                network: nn.Module = build(self.arch, seed=seed)
            elif self.rows:
                network = _Graph(self.rows)
            else:
                network = nn.Identity()
            _open_scales(network)
        return fuse_in_place(network)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; `from_data` gives an equal probe."""
        rows = [[*str(row.unit).partition(" ")[::2], [str(shape) for shape in row.inputs]] for row in self.rows]
        arch = None if self.arch is None else self.arch.to_json()
        model = None if self.model is None else self.model.to_data()
        return {"rows": rows, "arch": arch, "idle": [str(shape) for shape in self.idle], "model": model}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Probe:
        """Read `to_data`; the families of the blocks have to be loaded."""
        rows = (Row(parse_unit(name, text), tuple(map(Shape.parse, sizes))) for name, text, sizes in data["rows"])
        arch = None if data["arch"] is None else Arch.from_json(data["arch"])
        model = None if data["model"] is None else Foreign.from_data(data["model"])
        return cls(tuple(rows), arch, tuple(map(Shape.parse, data["idle"])), model)


@dataclass(frozen=True)
class Wiring:
    """How tensors, each with a number, run between the rows of a graph.

    Attributes:
        inputs: of the graph.
        input_shapes: their shapes.
        reads: the tensors that each row takes.
        makes: the tensors that each row gives.
    """

    inputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    reads: tuple[tuple[int, ...], ...]
    makes: tuple[tuple[int, ...], ...]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Of the graph: all that no row reads, since a runtime leaves out what only leads to nothing."""
        read = {tensor for tensors in self.reads for tensor in tensors}
        return tuple(tensor for tensors in self.makes for tensor in tensors if tensor not in read)


def wire(rows: Iterable[Row]) -> Wiring:
    """Connect rows in sequence by their streams.

    A row reads what the nearest row before gave, or an input of the graph that rows before it read, where name and
    shape agree; everything else is a further input of the graph.
    """
    shapes: list[Shape] = []  # of all tensors
    streams: dict[str, int] = {}
    inputs, reads, makes = [], [], []
    for row in rows:
        if not isinstance(row.unit, Block):
            streams = {name: tensor for name, tensor in streams.items() if name == "x"}
        for name, shape in zip(_takes(row), row.inputs, strict=True):
            if name not in streams or shapes[streams[name]] != shape:
                streams[name] = len(shapes)
                inputs.append(len(shapes))
                shapes.append(shape)
        reads.append(tuple(streams[name] for name in _takes(row)))
        made = calls_of_unit(row).outputs
        makes.append(tuple(range(len(shapes), len(shapes) + len(made))))
        shapes += made
        streams.update(zip(_gives(row), makes[-1], strict=True))
    return Wiring(tuple(inputs), tuple(shapes[tensor] for tensor in inputs), tuple(reads), tuple(makes))


def _takes(row: Row) -> tuple[str, ...]:
    """The streams that a row reads; an op reads `x`, and what else it reads comes from nowhere."""
    if isinstance(row.unit, Block):
        return row.unit.takes
    return ("x", *(f"in{number}" for number in range(1, len(row.inputs))))


def _gives(row: Row) -> tuple[str, ...]:
    if isinstance(row.unit, Block):
        return row.unit.gives
    return ("x", *(f"out{number}" for number in range(1, len(calls_of_unit(row).outputs))))


class _Graph(nn.Module):
    """Modules of rows in sequence: inputs of the graph -> its outputs."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.parts, self.wiring = nn.ModuleList(map(_module_of, rows)), wire(rows)

    def forward(self, *inputs: Tensor) -> Any:
        """Run every part on the tensors that it reads."""
        tensors = dict(zip(self.wiring.inputs, inputs, strict=True))
        for part, read, made in zip(self.parts, self.wiring.reads, self.wiring.makes, strict=True):
            result = part(*(tensors[number] for number in read))
            tensors.update(zip(made, result if isinstance(result, tuple) else (result,), strict=True))
        outputs = tuple(tensors[number] for number in self.wiring.outputs)
        return outputs if len(outputs) > 1 else outputs[0]


def _module_of(row: Row) -> nn.Module:
    return row.unit.module(*row.inputs) if isinstance(row.unit, Block) else row.unit.build(*row.inputs)


def _open_scales(network: nn.Module) -> None:
    """Layer scales start near zero; real ones are not, and products with tiny numbers can be slow."""
    for leaf in network.modules():
        if isinstance(leaf, Leaf) and isinstance(leaf.op, Scale):
            for parameter in leaf.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)


@dataclass(frozen=True)
class Formula:
    """The time of a row as a weighted sum of the times of probes."""

    row: Row
    terms: tuple[tuple[Probe, float], ...]

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes in it, each once."""
        return tuple(dict.fromkeys(probe for probe, _ in self.terms))

    def value(self, times: Mapping[str, float]) -> float:
        """The row's time from those of its probes, by key; it can come out below zero by noise."""
        return sum(weight * times[probe.key] for probe, weight in self.terms)


def formulas(
    rows: Iterable[Row], context: Iterable[Row], image: tuple[int, int, int], network_bytes: float = math.inf
) -> tuple[Formula, ...]:
    """How to time each of `rows`.

    Args:
        rows: to be timed.
        context: rows that may stand beside them, usually all rows of the space.
        image: (C, H, W) of what the first row of a network reads.
        network_bytes: weights of a typical network.
    """
    wanted = tuple(rows)
    around = _Context([*context, *wanted], Shape(1, *image), network_bytes)
    return tuple(_formula(row, around) for row in wanted)


class _Context:
    """What surrounds a row in a network.

    Of several rows that fit, those that share the largest tensor, then those that chain, then the cheapest, so that a
    difference is not lost in its noise.
    """

    def __init__(self, rows: Iterable[Row], image: Shape, network_bytes: float) -> None:
        self.image, self.network_bytes = image, network_bytes
        self.giving: dict[tuple[str, Shape], list[Row]] = defaultdict(list)
        self.taking: dict[tuple[str, Shape], list[Row]] = defaultdict(list)
        in_order = sorted(dict.fromkeys(rows), key=lambda row: (not chains(row), macs_of_unit(row), str(row)))
        self.bridges = [row for row in in_order if _is_bridge(row)]
        for row in (row for row in in_order if not _is_bridge(row)):
            for tensor in _given(row).items():
                self.giving[tensor].append(row)
            for tensor in _taken(row).items():
                self.taking[tensor].append(row)

    def hosts(self, row: Row) -> tuple[Row, ...]:
        """The rows that a bridge is inserted behind: one that chains on the same map, and for a bridge that only reads
        the map, one that writes it, since both stand in a network and share the map's layout there.
        """
        if not _is_bridge(row):
            return ()
        maps = [tensor for tensor in _taken(row).items() if tensor[1].is_map]
        host = [other for other in self.giving[maps[0]] if chains(other) and _agree(other, row)] if maps else []
        writers = [other for other in self.bridges if maps[0] in _given(other).items() and _agree(other, row)]
        return (*host[:1], *(writers[:1] if maps[0] not in _given(row).items() else ())) if host else ()

    def before(self, row: Row, *after: Row) -> tuple[Row, ...]:
        """Rows that lead to `row`, the nearest last; the first of them chains, where there is one."""
        for tensor in sorted(_taken(row).items(), key=_size, reverse=True):
            for other in self.giving[tensor]:
                if other not in (row, *after) and _fits(other, row):
                    return (other,) if chains(other) else (*self.before(other, row, *after), other)
        return ()

    def behind(self, row: Row) -> Row | None:
        """A row that chains and takes what `row` gives, best one that gives it on."""
        for tensor in sorted(_given(row).items(), key=_size, reverse=True):
            for other in sorted(self.taking[tensor], key=lambda other: tensor not in _given(other).items()):
                if chains(other) and other != row and _fits(row, other):
                    return other
        return None


def _is_bridge(row: Row) -> bool:
    return isinstance(row.unit, Block) and row.unit.bridge


def _agree(first: Row, second: Row) -> bool:
    """Whether streams that both take or give have one shape."""
    mine, theirs = _taken(first) | _given(first), _taken(second) | _given(second)
    return all(theirs[name] == shape for name, shape in mine.items() if name in theirs)


def _size(tensor: tuple[str, Shape]) -> int:
    return math.prod(tensor[1])


def chains(row: Row) -> bool:
    """Whether a row can stand behind itself."""
    return _fits(row, row)


def _fits(first: Row, second: Row) -> bool:
    """Whether the second row takes something from the first, and nothing of another shape."""
    given, taken = _given(first), _taken(second)
    shared = given.keys() & taken.keys()
    return bool(shared) and all(given[name] == taken[name] for name in shared)


def _given(row: Row) -> dict[str, Shape]:
    return dict(zip(_gives(row), calls_of_unit(row).outputs, strict=True))


def _taken(row: Row) -> dict[str, Shape]:
    return dict(zip(_takes(row), row.inputs, strict=True))


def _formula(row: Row, around: _Context) -> Formula:
    """How to time a row: the graphs that are timed, each with its weight in the sum that is the row's time.

    At its ends a graph takes time that a row inside a network does not take, such as to convert layouts. So a row that
    can follow itself is timed as a chain of itself; another one between or behind rows that stand there in networks,
    less what these take without it (half a chain of two is one row); and only where there are none alone, less a graph
    that does nothing.
    """
    if hosts := around.hosts(row):
        inserted, alone = (_chain(rows, around.network_bytes) for rows in ((*hosts, row), hosts))
        return Formula(row, (*inserted, *((probe, -weight) for probe, weight in alone)))
    if chains(row):
        return Formula(row, _chain((row,), around.network_bytes))
    path, behind = around.before(row), around.behind(row)
    if path and behind is not None and chains(path[-1]):
        terms = [((path[-1], row, behind), 1.0), ((path[-1],) * 2, -0.5), ((behind,) * 2, -0.5)]
    elif path:
        lead = path * 2 if len(path) == 1 and chains(path[0]) else path
        terms = [((*lead, row), 1.0), (lead, -1.0)]
    elif behind is not None:
        terms = [((row, behind), 1.0)]
        if row.inputs != (around.image,):
            return Formula(row, (*_probes(terms), (Probe((behind,)), -1.0)))
        slope = _chain((behind,), around.network_bytes)
        return Formula(row, (*_probes(terms), *((probe, -weight) for probe, weight in slope)))
    else:
        return Formula(row, ((Probe((row,)), 1.0), (Probe(idle=row.inputs[:1]), -1.0)))
    return Formula(row, tuple(_probes(terms)))


def _chain(rows: tuple[Row, ...], network_bytes: float) -> tuple[tuple[Probe, float], ...]:
    """The time of these rows in sequence, where the sequence is repeated."""
    length = LONG_CHAIN if sum(map(macs_of_unit, rows)) < SHORT_MACS else CHAIN
    fits = network_bytes / max(BYTES_PER_VALUE * sum(map(params_of_unit, rows)), 1)
    if fits >= length:
        share = 1.0 / (length - 1)
        return (Probe(rows * length), share), (Probe(rows), -share)
    length = max(int(fits), SHORT_CHAIN)
    return (Probe(rows * length), 1.0 / length), (Probe(idle=rows[0].inputs[:1]), -1.0 / length)


def _probes(terms: Iterable[tuple[tuple[Row, ...], float]]) -> Iterator[tuple[Probe, float]]:
    return ((Probe(rows), weight) for rows, weight in terms)
