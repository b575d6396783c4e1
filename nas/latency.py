"""Latency tables: what was measured on one device with one runtime, and what an arch is predicted to take from it.

A table is text: a commented header, rows of ops or blocks in microseconds, and whole networks measured with them. From
the networks come the calibration (a scale, with an offset or a power where those clearly predict networks better that
it was not fitted on) and the error of the table. Both are computed when a table is read; the file repeats them for the
reader.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import search_spaces
from nas.arch import Arch, calls_of
from nas.errors import InputError, MissingLatency, TableError
from nas.ops import Row, Shape, parse_unit
from nas.space import Space
from nas.tracing import Call
from nas.units import show_us

FORMAT = 1
CALIBRATION_LINE = "# calibration (computed from the networks below):"
COLUMNS = ("kind", "name", "fields", "inputs", "us", "spread_us", "count")
LEVELS = ("block", "op")
MIN_NETWORKS = 5  # fewer give no calibration that could be checked
CHUNK = 2048  # archs priced at once, so that their costs stay in the cache
GAIN = 0.8  # a second parameter must lower the held-out error to this share: it can mislead far from the networks
MOST_POWER = 1.5
T = TypeVar("T", float, np.ndarray)


@dataclass(frozen=True)
class Header:
    """What a table was measured on and how.

    Attributes:
        device: short name of the device, a folder name.
        cpu: model name of the processor.
        cores: number of logical cores.
        runtime: name of the backend.
        runtime_version: its version.
        precision: of weights and activations.
        threads: threads set in the runtime.
        form: of the models; always "deployed" (norms folded).
        level: "block" or "op": what a row is.
        space: the space whose rows it holds.
        input_shape: (C, H, W) of the images.
        classes: number of logits.
        date: day of the first measurement, ISO.
        protocol: how a row was timed, in a line.
        sentinel_us: time of the fixed reference block in this run, in microseconds.
        units: of all times; always "us".
    """

    device: str
    cpu: str
    cores: int
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    level: str
    space: str
    input_shape: tuple[int, int, int]
    classes: int
    date: str
    protocol: str
    sentinel_us: float
    form: str = "deployed"
    units: str = "us"


@dataclass(frozen=True)
class Entry:
    """A row: the time of one block or op.

    Attributes:
        row: the key.
        us: latency in microseconds.
        spread_us: how far repeated measurements of it lie apart, in microseconds.
        count: samples behind it.
    """

    row: Row
    us: float
    spread_us: float
    count: int


@dataclass(frozen=True)
class Network:
    """A whole network measured together with the rows; see `Entry`."""

    arch: Arch
    us: float
    spread_us: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """From a sum of rows to a latency: `scale * sum ** power + offset_us`, which grows with the sum.

    A power above one says that large networks take longer than their rows: small ones stay in a cache that large ones
    overflow, above all where the cache is about as large as a network's weights.

    Attributes:
        scale: factor on every row.
        offset_us: time of a network outside its blocks, in microseconds; 0 where another form predicts better.
        networks: how many measured networks it was fitted on.
        mape_percent: mean absolute error on each network of a fit on the others.
        interval: a prediction is off by at most this fraction with about 90 % confidence: the matching order
            statistic of those held-out errors (the largest, below nine networks).
        power: exponent of the sum; 1 where another form predicts better.
    """

    scale: float
    offset_us: float
    networks: int
    mape_percent: float
    interval: float
    power: float = 1.0

    def us(self, total: T) -> T:
        """The latency for a sum of rows, both in microseconds; numbers or arrays."""
        latency: T = self.scale * total**self.power + self.offset_us
        return latency

    def __str__(self) -> str:
        power = f" ^ {self.power:.4f}" if self.power != 1 else ""
        offset = f" + {self.offset_us:.1f} us" if self.offset_us else ""
        line = f"{self.scale:.4f} x sum{power}{offset}"
        return f"{line}, held-out error {self.mape_percent:.1f} % on {self.networks} networks"


@dataclass(frozen=True)
class Latency:
    """A predicted latency of one inference at batch 1.

    Attributes:
        total_us: prediction in microseconds.
        low_us: lower end of the 90 % interval; None from an uncalibrated table.
        high_us: upper end.
        offset_us: the part that belongs to no block.
        blocks: every call with its share in microseconds; with the offset they sum to the total.
        calibrated: whether the table's measured networks stand behind it.
    """

    total_us: float
    low_us: float | None
    high_us: float | None
    offset_us: float
    blocks: tuple[tuple[Call, float], ...]
    calibrated: bool

    def __str__(self) -> str:
        if self.low_us is None or self.high_us is None:
            return f"{show_us(self.total_us)} (uncalibrated)"
        return f"{show_us(self.total_us)} (90 %: {show_us(self.low_us)} to {show_us(self.high_us)})"


class Table:
    """A latency table.

    Args:
        header: what was measured on and how.
        entries: the rows; two of one key are an error.
        networks: whole networks measured with them.
        path: where it was read from, for messages.
    """

    def __init__(
        self, header: Header, entries: Iterable[Entry], networks: Iterable[Network] = (), path: Path | None = None
    ) -> None:
        self.header = header
        self.entries = tuple(sorted(entries, key=lambda entry: str(entry.row)))
        self.networks = tuple(sorted(networks, key=lambda network: network.us))
        self.path = path
        self._us = {entry.row: entry.us for entry in self.entries}
        if len(self._us) != len(self.entries):
            raise TableError(f"{self.where}: two rows have one key")

    @property
    def where(self) -> str:
        """The path, or `table` before it has one."""
        return str(self.path) if self.path is not None else "table"

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Fitted on the measured networks; None with fewer than five of them."""
        if len(self.networks) < MIN_NETWORKS:
            return None
        sums = np.array([self.raw_us(calls_of(network.arch)) for network in self.networks])
        return calibrate(sums, np.array([network.us for network in self.networks]))

    @property
    def mape_percent(self) -> float | None:
        """Held-out error on the measured networks, in percent; None where uncalibrated."""
        return self.calibration.mape_percent if self.calibration else None

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of what was measured, in hex: names the table in every result."""
        lines = self.to_text().splitlines()
        measured = (line for line in lines if not line.startswith(CALIBRATION_LINE))
        return hashlib.sha256("\n".join(measured).encode()).hexdigest()

    def __contains__(self, row: object) -> bool:
        return row in self._us

    def missing(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """The rows that this table lacks, each once."""
        return tuple(dict.fromkeys(row for row in rows if row not in self._us))

    def raw_us(self, calls: Sequence[Call]) -> float:
        """The plain sum of rows, uncalibrated.

        Raises:
            MissingLatency: naming every row the table lacks.
        """
        rows = self._rows_of(calls)
        try:
            return sum([self._us[row] for row in rows])
        except KeyError:
            raise self._missing(rows) from None

    def price(self, calls: Sequence[Call]) -> Latency:
        """Predict the latency of one inference at batch 1: the sum of its rows, calibrated.

        Args:
            calls: of the whole network, from `calls_of(arch)`.

        Raises:
            MissingLatency: naming every row the table lacks, and the command that measures them.
        """
        fit, known = self.calibration, self._us
        try:
            if self.header.level == "block":
                blocks = [(call, known[call.row]) for call in calls]
            else:
                blocks = [(call, sum([known[op.row] for op in call.ops or (call,)])) for call in calls]
        except KeyError:
            raise self._missing(self._rows_of(calls)) from None
        raw = sum([us for _, us in blocks])
        if fit is None:
            return Latency(raw, None, None, 0.0, tuple(blocks), False)
        total, interval = fit.us(raw), fit.interval
        share = (total - fit.offset_us) / raw if raw else 0.0
        shares = tuple([(call, share * us) for call, us in blocks])
        return Latency(total, total * (1 - interval), total * (1 + interval), fit.offset_us, shares, True)

    def row_us(self, row: Row) -> float:
        """What one block adds to the sum that is then calibrated; for `space.extreme`, which needs costs that sum.

        Raises:
            MissingLatency: where the table lacks it.
        """
        if self.header.level == "block":
            rows: tuple[Row, ...] = (row,)
        else:
            from nas.tracing import calls_of_unit

            rows = tuple(call.row for call in calls_of_unit(row).ops)
        if self.missing(rows):
            raise self._missing(rows)
        return sum(self._us[item] for item in rows)

    def total_us(self, total: T) -> T:
        """The prediction for a sum of `row_us`, or for many; it grows with the sum, so extremes stay extremes."""
        return total if self.calibration is None else self.calibration.us(total)

    def extremes(self, space: Space) -> tuple[tuple[float, Arch], tuple[float, Arch]]:
        """The smallest and the largest predicted latency of a space in microseconds, each with its arch; exact.

        Raises:
            MissingLatency: where the table lacks rows of the space.
        """
        self.require(space)
        (low, smallest), (high, largest) = space.extreme(self.row_us), space.extreme(self.row_us, largest=True)
        return (self.total_us(low), smallest), (self.total_us(high), largest)

    def require(self, space: Space) -> None:
        """Raise where this table lacks rows that an arch of the space can need.

        Raises:
            TableError: where the table was measured at another resolution.
            MissingLatency: naming the rows.
        """
        if space.input_shape != self.header.input_shape:
            raise TableError(
                f"{self.where} was measured for input {_sizes(self.header.input_shape)}, space {space.name} has "
                f"{_sizes(space.input_shape)}; profile it: nas profile {space.name} --runtime {self.header.runtime}"
            )
        rows = space.rows() if self.header.level == "block" else space.op_rows()
        if self.missing(rows):
            raise self._missing(rows)

    def price_matrix(self, space: Space, matrix: np.ndarray) -> np.ndarray:
        """Predict many archs at once, in microseconds.

        Args:
            space: the space that encoded them.
            matrix: (archs, slots) int, from `space.encode(archs)`.

        Shape: (archs, slots) -> (archs,)
        """
        costs = self._costs(space)
        if matrix.size and not 0 <= matrix.min() <= matrix.max() < len(costs):
            raise InputError(f"row numbers from {matrix.min()} to {matrix.max()}: space {space.name} has {len(costs)}")
        totals = np.empty(len(matrix))
        ones = np.ones(matrix.shape[1])
        for start in range(0, len(matrix), CHUNK):
            part = slice(start, start + CHUNK)
            totals[part] = np.take(costs, matrix[part], mode="clip") @ ones  # checked above; clip skips a second check
        return self.total_us(totals)

    def _costs(self, space: Space) -> np.ndarray:
        cached: dict[Space, np.ndarray] = self.__dict__.setdefault("_costs_of", {})
        if space not in cached:
            self.require(space)
            cached[space] = np.array([*(self.row_us(row) for row in space.rows()), 0.0])  # the last: an empty slot
        return cached[space]

    def _rows_of(self, calls: Sequence[Call]) -> list[Row]:
        if self.header.level == "block":
            return [call.row for call in calls]
        return [op.row for call in calls for op in call.ops or (call,)]

    def _missing(self, rows: Iterable[Row]) -> MissingLatency:
        wanted = tuple(dict.fromkeys(rows))
        lacking = tuple(map(str, self.missing(wanted)))
        listed = "\n".join(f"  {text}" for text in lacking)
        return MissingLatency(
            f"{self.where} lacks {len(lacking)} of {len(wanted)} {self.header.level} rows:\n{listed}\n"
            f"Measure them, on the table's device, with: nas profile --table {self.where} --arch ARCH.json "
            "(rows of one network) or nas profile SPACE --table ... (rows of a whole space)",
            lacking,
        )

    def to_text(self) -> str:
        """The file's content."""
        head = dataclasses.asdict(self.header) | {"input_shape": _sizes(self.header.input_shape)}
        lines = [f"# millinas latency table, format {FORMAT}"]
        lines += [f"# {key}: {value}" for key, value in head.items()]
        lines.append(f"{CALIBRATION_LINE} {self.calibration or 'none'}")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for entry in self.entries:
            inputs = " ".join(map(str, entry.row.inputs))
            name, _, fields = str(entry.row.unit).partition(" ")
            writer.writerow(["row", name, fields, inputs, *_numbers(entry)])
        for network in self.networks:
            inputs = str(Shape(1, *network.arch.input_shape))
            writer.writerow(["network", network.arch.family, network.arch.to_text(), inputs, *_numbers(network)])
        return "\n".join(lines) + "\n" + text.getvalue()

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table; whoever reads the path at that moment sees the old file or the new one, never half."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(self.to_text(), encoding="utf-8")
        temporary.replace(target)
        return target

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table.

        Raises:
            TableError: naming the file, line and column of what cannot be read: another format version or unit,
                an unknown block, a duplicate or incomplete row, a number that is none.
        """
        source = Path(path)
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"{source}: cannot be read as a latency table: {error}") from error
        header, body, first = _read_header(text, source)
        search_spaces.load(header.space)  # its blocks become known
        entries: dict[Row, Entry] = {}
        networks: dict[Arch, Network] = {}
        for number, cells in enumerate(csv.reader(body), first + 1):
            where = f"{source}:{number}"
            if number == first + 1:
                if tuple(cells) != COLUMNS:
                    raise TableError(f"{where}: expected the columns {','.join(COLUMNS)}; got {','.join(cells)}")
                continue
            if len(cells) != len(COLUMNS):
                raise TableError(f"{where}: expected {len(COLUMNS)} columns, got {len(cells)}")
            line = dict(zip(COLUMNS, cells, strict=True))
            values = _read_numbers(line, where)
            if line["kind"] == "row":
                row = _read_row(line, where)
                if row in entries:
                    raise TableError(f"{where}: second row for {row}")
                entries[row] = Entry(row, *values)
            elif line["kind"] == "network":
                arch = _read_network(line, header, where)
                if arch in networks:
                    raise TableError(f"{where}: second row for network {arch.id}")
                networks[arch] = Network(arch, *values)
            else:
                raise TableError(f"{where}, column kind: expected row or network, got {line['kind']!r}")
        return cls(header, entries.values(), networks.values(), source)


def calibrate(sums: np.ndarray, measured: np.ndarray) -> Calibration:
    """Fit measured latencies by sums of rows, in relative error, in the form of the lowest held-out error.

    The forms: a scale; a scale and an offset; a scale and a power. One of two parameters has to be clearly better.

    Args:
        sums: (n,) predictions before calibration, in microseconds.
        measured: (n,) truths.
    """
    everything = np.arange(len(sums))
    held_out = {}
    for fit in (_scale, _affine, _power):
        lines = [fit(sums[everything != i], measured[everything != i]) for i in everything]
        held_out[fit] = np.array([_off(line, sums[i], measured[i]) for i, line in enumerate(lines)])
    handicap = {_scale: GAIN, _affine: 1.0, _power: 1.0}
    best = min(held_out, key=lambda fit: handicap[fit] * float(held_out[fit].mean()))
    scale, offset, power = best(sums, measured)
    errors = np.sort(held_out[best])
    rank = min(int(np.ceil(0.9 * (len(sums) + 1))), len(sums)) - 1
    return Calibration(scale, offset, len(sums), 100 * float(errors.mean()), float(errors[rank]), power)


_Line = tuple[float, float, float]  # scale, offset, power


def _scale(sums: np.ndarray, measured: np.ndarray) -> _Line:
    relative = sums / measured
    return float(relative.sum() / (relative @ relative)), 0.0, 1.0


def _affine(sums: np.ndarray, measured: np.ndarray) -> _Line:
    columns = np.stack([sums / measured, 1 / measured], 1)
    scale, offset = np.linalg.lstsq(columns, np.ones(len(sums)), rcond=None)[0]
    if scale <= 0 or offset < 0:  # a network cannot take less than its blocks allow
        return _scale(sums, measured)
    return float(scale), float(offset), 1.0


def _power(sums: np.ndarray, measured: np.ndarray) -> _Line:
    if np.ptp(sums) == 0 or (sums <= 0).any():
        return _scale(sums, measured)
    power, logarithm = np.polyfit(np.log(sums), np.log(measured), 1)
    if not 1.0 <= power <= MOST_POWER:
        return _scale(sums, measured)
    return float(np.exp(logarithm)), 0.0, float(power)


def _off(line: _Line, total: float, measured: float) -> float:
    scale, offset, power = line
    return float(abs(scale * total**power + offset - measured) / measured)


def _numbers(item: Entry | Network) -> list[str]:
    return [f"{item.us:.3f}", f"{item.spread_us:.3f}", str(item.count)]


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _read_header(text: str, source: Path) -> tuple[Header, list[str], int]:
    lines = text.splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not lines or not lines[0].startswith("# millinas latency table, format "):
        raise TableError(f"{source}:1: this is no millinas latency table; a header with its format comes first")
    if lines[0].rpartition(" ")[2] != str(FORMAT):
        raise TableError(f"{source}:1: format {lines[0].rpartition(' ')[2]}; this version of nas reads {FORMAT}")
    pairs = (line.removeprefix("# ").partition(": ") for line in lines[1:count])
    found = {key: (number, value) for number, (key, _, value) in enumerate(pairs, 2)}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Header):
        if field.name not in found:
            raise TableError(f"{source}: the header lacks {field.name!r}")
        number, value = found[field.name]
        values[field.name] = _read_value(field.name, str(field.type), value, f"{source}:{number}")
    return Header(**values), lines[count:], count


def _read_value(name: str, kind: str, text: str, where: str) -> Any:
    legal = {"units": ("us",), "form": ("deployed",), "level": LEVELS}.get(name)
    if legal and text not in legal:
        raise TableError(f"{where}: {name}: expected {' or '.join(legal)}, got {text!r}")
    try:
        if name == "input_shape":
            shape = Shape.parse(text)
            if len(shape) != 3:
                raise ValueError
            return tuple(shape)
        return {"int": int, "float": float, "str": str}[kind](text)
    except ValueError as error:
        raise TableError(
            f"{where}: {name}: expected {'CxHxW' if name == 'input_shape' else kind}, got {text!r}"
        ) from error


def _read_numbers(line: dict[str, str], where: str) -> tuple[float, float, int]:
    values = []
    for name in ("us", "spread_us", "count"):
        try:
            value = float(line[name])
        except ValueError as error:
            raise TableError(f"{where}, column {name}: expected a number, got {line[name]!r}") from error
        if not np.isfinite(value) or value < 0 or (name == "us" and value == 0 and line["kind"] == "network"):
            raise TableError(f"{where}, column {name}: expected a finite number >= 0, got {line[name]!r}")
        values.append(value)
    return values[0], values[1], int(values[2])


def _read_row(line: dict[str, str], where: str) -> Row:
    try:
        unit = parse_unit(line["name"], line["fields"])
    except InputError as error:
        raise TableError(f"{where}, column name or fields: {error}") from error
    try:
        return Row(unit, tuple(Shape.parse(text) for text in line["inputs"].split()))
    except InputError as error:
        raise TableError(f"{where}, column inputs: {error}") from error


def _read_network(line: dict[str, str], header: Header, where: str) -> Arch:
    try:
        search_spaces.load(line["name"])
        _, channels, height, width = Shape.parse(line["inputs"])
        return Arch.from_text(line["fields"], line["name"], (channels, height, width), header.classes)
    except (InputError, ValueError) as error:
        raise TableError(f"{where}, column name, fields or inputs: {error}") from error
