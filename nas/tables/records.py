"""What a latency table holds, and its file: a commented header, then rows and whole networks, a line each.

The file is text that diffs well. Lines that begin with `# computed` repeat for the reader what is computed when the
table is read; they are not read.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, TableError, brief
from nas.core.ops import Row, Shape, is_known, parse_unit
from nas.core.space import Space
from nas.profiling.device.timing import MOST_NOISE

FORMAT = 2
COMPUTED = "# computed "
COLUMNS = ("kind", "name", "fields", "inputs", "us", "spread_us", "count", "source", "peak_bytes")
LEVELS = ("block", "op")
SOURCES = ("measured", "predicted", "imported")
MOST_US = 1e9  # of a row or network: a quarter of an hour
MOST_BYTES = 10**15
#: the legal values of whole numbers in the header and the columns
COUNTS = {"cores": (0, 1 << 16), "threads": (1, 1 << 16), "count": (0, 10**9)}
METHODS = ("chains", "in-situ", "transfer", "imported")


@dataclass(frozen=True)
class Header:
    """What a table was measured on and how.

    Attributes:
        device: short name of the device, a folder name.
        cpu: model name of the processor.
        cores: number of logical cores.
        runtime: name of the backend.
        runtime_version: its version.
        variant: of the backend.
        precision: of weights and activations.
        threads: threads set in the runtime.
        level: "block" or "op": what a row is.
        spaces: the spaces all of whose rows it holds, as `scope_of` spells them.
        method: how a row was timed: in `METHODS`.
        protocol: the same in a line.
        date: day of the first measurement, ISO.
        sentinel_us: time of the fixed reference block in this run, in microseconds.
        form: of the models; always "deployed" (norms folded).
        units: of all times; always "us".
        checked: when and how the networks of the card were measured; "" without a card.
        noise: share of samples that fell into slow spells of the machine, 0..1; None where it is not known.
    """

    device: str
    cpu: str
    cores: int
    runtime: str
    runtime_version: str
    variant: str
    precision: str
    threads: int
    level: str
    spaces: tuple[str, ...]
    method: str
    protocol: str
    date: str
    sentinel_us: float
    form: str = "deployed"
    units: str = "us"
    checked: str = ""
    noise: float | None = None

    @property
    def noisy(self) -> bool:
        """Whether the machine was too disturbed for its times to be believed."""
        return self.noise is not None and self.noise > MOST_NOISE


@dataclass(frozen=True)
class Entry:
    """A row: the time of one block or op.

    Attributes:
        row: the key.
        us: latency in microseconds.
        spread_us: how far repeated measurements of it lie apart, in microseconds; of a predicted row, the standard
            error of the prediction.
        count: samples behind it.
        source: in `SOURCES`.
    """

    row: Row
    us: float
    spread_us: float
    count: int
    source: str = "measured"


@dataclass(frozen=True)
class NetworkEntry:
    """A whole network, measured; see `Entry`.

    Attributes:
        peak_bytes: memory that loading and running it added to a process, None where not measured.
    """

    arch: Arch
    us: float
    spread_us: float
    count: int
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Content:
    """All that a table's file holds.

    Attributes:
        header: what it was measured on and how.
        entries: the rows.
        networks: behind the calibration.
        checks: networks of the card, which the calibration never sees.
    """

    header: Header
    entries: tuple[Entry, ...]
    networks: tuple[NetworkEntry, ...]
    checks: tuple[NetworkEntry, ...]


def scope_of(space: Space) -> str:
    """A space in a table's header: its name, with size and classes where they are not its own."""
    own = search_spaces.load(space.name) if space.name in search_spaces.spaces() else space
    if (space.input_shape, space.classes) == (own.input_shape, own.classes):
        return space.name
    return f"{space.name}@{_sizes(space.input_shape)}/{space.classes}"


def space_of(scope: str) -> Space:
    """The space that `scope_of` names.

    Raises:
        InputError: for an unknown space, naming the closest ones.
    """
    name, _, rest = scope.partition("@")
    space = search_spaces.load(name)
    if not rest:
        return space
    found = re.fullmatch(r"(\d+x\d+x\d+)/([1-9]\d{0,5})", rest, re.ASCII)
    if found is None:
        raise InputError(f"expected a space such as {name}@3x32x32/10, got {brief(scope)}")
    channels, height, width = Shape.parse(found[1])
    return dataclasses.replace(space, input_shape=(channels, height, width), classes=int(found[2]))


def to_text(content: Content, computed: Iterable[str] = ()) -> str:
    """The file of a table.

    Args:
        content: what it holds.
        computed: lines for the reader only.
    """
    head = dataclasses.asdict(content.header) | {"spaces": " ".join(content.header.spaces)}
    if content.header.noise is None:
        del head["noise"]
    lines = [f"# millinas latency table, format {FORMAT}"]
    lines += [f"# {key}: {value}".rstrip() for key, value in head.items()]
    lines += [f"{COMPUTED}{line}" for line in computed]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in content.entries:
        inputs = " ".join(map(str, entry.row.inputs))
        name, _, fields = str(entry.row.unit).partition(" ")
        writer.writerow(["row", name, fields, inputs, *_numbers(entry), entry.source, ""])
    for kind, networks in (("network", content.networks), ("check", content.checks)):
        for network in networks:
            arch, peak = network.arch, network.peak_bytes
            inputs = str(Shape(1, *arch.input_shape))
            tail = ("measured", "" if peak is None else str(peak))
            writer.writerow([kind, arch.family, arch.to_text(), inputs, *_numbers(network), *tail])
    return "\n".join(lines) + "\n" + text.getvalue()


def measured_text(text: str) -> str:
    """The part of a file that predictions rest on: without computed lines and the networks of the card."""
    lines = (line for line in text.splitlines() if not line.startswith((COMPUTED, "check,", "# checked:")))
    return "\n".join(lines)


def read_text(text: str, source: Path) -> Content:
    """Read the file of a table.

    Raises:
        TableError: naming the file, line and column of what cannot be read: another format version or unit, an unknown
            block, a duplicate or incomplete row, a number that is none.
    """
    header, body, first = _read_header(text, source)
    entries: dict[Row, Entry] = {}
    networks: dict[str, dict[Arch, NetworkEntry]] = {"network": {}, "check": {}}
    loaded: set[str] = set()  # spaces whose blocks are known: to look for one reads folders
    for number, cells in _cells(body, source, first + 1):
        where = f"{source}:{number}"
        if number == first + 1:
            if tuple(cells) != COLUMNS:
                raise TableError(f"{where}: expected the columns {','.join(COLUMNS)}; got {','.join(cells)}")
            continue
        if len(cells) != len(COLUMNS):
            raise TableError(f"{where}: expected {len(COLUMNS)} columns, got {len(cells)}")
        line = dict(zip(COLUMNS, cells, strict=True))
        values = _read_numbers(line, where, header.method)
        if line["source"] not in SOURCES:
            raise TableError(f"{where}, column source: expected {' or '.join(SOURCES)}, got {line['source']!r}")
        if line["kind"] == "row":
            row = _read_row(line, where)
            if row in entries:
                raise TableError(f"{where}: second row for {row}")
            entries[row] = Entry(row, *values, line["source"])
        elif line["kind"] in networks:
            arch = _read_network(line, where, loaded)
            if any(arch in known for known in networks.values()):
                raise TableError(f"{where}: second row for network {arch.id}")
            networks[line["kind"]][arch] = NetworkEntry(arch, *values, _read_bytes(line, where))
        else:
            raise TableError(f"{where}, column kind: expected row, network or check, got {line['kind']!r}")
    return Content(header, tuple(entries.values()), *(tuple(found.values()) for found in networks.values()))


def _cells(body: list[str], source: Path, first: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file as columns, numbered."""
    reader = csv.reader(body)
    try:
        yield from enumerate(reader, first)
    except csv.Error as error:
        raise TableError(
            f"{source}:{first + reader.line_num - 1}: cannot be read as a table's line: {error}"
        ) from error


def _numbers(item: Entry | NetworkEntry) -> list[str]:
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
    found: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines[1:count], 2):
        key, _, value = (line.removeprefix("# ") + " ").partition(": ")
        if key in found and not line.startswith(COMPUTED):
            raise TableError(f"{source}:{number}: {brief(key)} stands there twice, first in line {found[key][0]}")
        found[key] = (number, value.strip())
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Header):
        if field.name not in found:
            if field.name == "noise":  # tables did not always have it
                continue
            raise TableError(f"{source}: the header lacks {field.name!r}")
        number, value = found[field.name]
        values[field.name] = _read_value(field.name, str(field.type), value, f"{source}:{number}")
    return Header(**values), lines[count:], count


def _read_value(name: str, kind: str, text: str, where: str) -> Any:
    legal = {"units": ("us",), "form": ("deployed",), "level": LEVELS, "method": METHODS}.get(name)
    if legal and text not in legal:
        raise TableError(f"{where}: {name}: expected {' or '.join(legal)}, got {text!r}")
    try:
        if name == "spaces":
            for scope in text.split():
                space_of(scope)  # its blocks become known
            return tuple(text.split())
        if name == "noise" and not 0 <= float(text) <= 1:
            raise TableError(f"{where}: {name}: expected a share from 0 to 1, got {text!r}")
        value = {"int": int, "float": float, "str": str, "float | None": float}[kind](text)
    except InputError as error:
        raise TableError(f"{where}: {name}: {error}") from error
    except ValueError as error:
        raise TableError(f"{where}: {name}: expected {kind}, got {brief(text)}") from error
    if name in COUNTS:
        _check_count(value, name, f"{where}: {name}")
    if name == "sentinel_us" and not (np.isnan(value) or 0 < value <= MOST_US):
        raise TableError(f"{where}: {name}: expected nan or more than 0, at most {MOST_US:g}; got {text!r}")
    return value


def _check_count(value: float, name: str, where: str) -> None:
    low, high = COUNTS[name]
    if not low <= value <= high or value != int(value):
        raise TableError(f"{where}: expected a whole number from {low} to {high}, got {brief(value)}")


def _read_numbers(line: dict[str, str], where: str, method: str) -> tuple[float, float, int]:
    values = []
    for name in ("us", "spread_us", "count"):
        try:
            value = float(line[name])
        except ValueError as error:
            raise TableError(f"{where}, column {name}: expected a number, got {brief(line[name])}") from error
        if not 0 <= value <= MOST_US or (name == "us" and value == 0 and line["kind"] != "row"):
            raise TableError(
                f"{where}, column {name}: expected a finite number >= 0, at most {MOST_US:g}; got {brief(line[name])}"
            )
        values.append(value)
    _check_count(values[2], "count", f"{where}, column count")
    fused = method == "in-situ" and values[2] > 0  # into its neighbours; alone, what noise hides has a spread
    if values[0] == values[1] == 0 and not fused:
        raise TableError(f"{where}, column us: a time of 0 with a spread of 0 was never measured")
    return values[0], values[1], int(values[2])


def _read_bytes(line: dict[str, str], where: str) -> int | None:
    text = line["peak_bytes"]
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,16}", text) or not 0 < int(text) <= MOST_BYTES:
        raise TableError(
            f"{where}, column peak_bytes: expected a whole number from 1 to {MOST_BYTES}, got {brief(text)}"
        )
    return int(text)


def _read_row(line: dict[str, str], where: str) -> Row:
    if not is_known(line["name"]):  # of a space that the table does not hold as a whole
        for name in search_spaces.families():
            search_spaces.family(name)
    try:
        unit = parse_unit(line["name"], line["fields"])
    except InputError as error:
        raise TableError(f"{where}, column name or fields: {error}") from error
    try:
        return Row(unit, tuple(Shape.parse(text) for text in line["inputs"].split()))
    except InputError as error:
        raise TableError(f"{where}, column inputs: {error}") from error


def _read_network(line: dict[str, str], where: str, loaded: set[str]) -> Arch:
    found = re.findall(r"\bclasses=(\d+)", line["fields"])
    if not found:
        raise TableError(f"{where}, column fields: no block of the network names its number of classes")
    try:
        if line["name"] not in loaded:
            search_spaces.load(line["name"])
            loaded.add(line["name"])
        _, channels, height, width = Shape.parse(line["inputs"])
        if not channels * height * width:
            raise InputError(f"expected images, got {line['inputs']}")
        return Arch.from_text(line["fields"], line["name"], (channels, height, width), int(found[-1]))
    except (InputError, ValueError) as error:
        raise TableError(f"{where}, column name, fields or inputs: {error}") from error
