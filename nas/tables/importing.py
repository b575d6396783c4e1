"""Latency tables of others, as tables of ours: what has an exact equivalent is taken over, the rest is listed with why.

- `csv`: our own exchange format, one line for each block or op:

      block,fields,inputs,us,spread_us,count
      InvertedResidual,cout=24 stride=2 kernel=3 expand=6,1x16x112x112,812.4,3.1,50

  `block` is a class of a block or op, `fields` its fields as `nas describe` writes them, `inputs` the shapes of its
  inputs (N, C, H, W or N, T, C), separated by spaces. The latency's column is called by its unit, `us` or `ms`; the
  spread (`spread_us` or `spread_ms`) and the number of samples (`count`) may be left out and are 0 then.
- `ofa`: the YAML files of ProxylessNAS and Once-for-All (github.com/mit-han-lab/once-for-all,
  ofa/nas/efficiency_predictor/latency_lookup_table.py), whose keys describe layers and whose `mean` is the latency.
  They do not say their unit. Only ProxylessNAS's inverted residuals with ReLU6 are ours.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import search_spaces
from nas.core.blocks import InvertedResidual
from nas.core.errors import InputError, TableError, brief, suggest
from nas.core.files import lock_of
from nas.core.ops import Block, Row, Shape, parse_unit
from nas.core.plain import read_yaml
from nas.core.tracing import calls_of_unit
from nas.tables.records import MOST_US
from nas.tables.table import Entry, Header, Table

FACTORS = {"us": 1.0, "ms": 1000.0}
OFA_KEY = re.compile(
    r"expanded_conv-input:(?P<input>\d+x\d+x\d+)-output:(?P<output>\d+x\d+x\d+)-expand:(?P<expand>\d+)"
    r"-kernel:(?P<kernel>\d+)-stride:(?P<stride>\d+)-idskip:(?P<idskip>[01])(?:-se:(?P<se>[01])-hs:(?P<hs>[01]))?"
)


@dataclass(frozen=True)
class Origin:
    """What a foreign table does not say of itself.

    Attributes:
        device: short name of the device, a folder name.
        runtime: what ran the blocks.
        precision: of weights and activations.
        threads: threads of the runtime.
        cpu: model name of the processor.
        cores: number of logical cores, 0 where unknown.
        runtime_version: of the runtime.
        date: when it was measured, ISO.
    """

    device: str
    runtime: str
    precision: str
    threads: int
    cpu: str = "unknown"
    cores: int = 0
    runtime_version: str = "unknown"
    date: str = "unknown"


@dataclass(frozen=True)
class Imported:
    """What came of a foreign table.

    Attributes:
        table: the rows that have an equivalent; each is marked as imported.
        skipped: keys of the others, with the reason.
    """

    table: Table
    skipped: tuple[tuple[str, str], ...]

    def write(self, path: Path) -> None:
        """Write the table; one that was imported before is replaced.

        Raises:
            InputError: where the path holds a table that was not imported.
            RunError: where another process writes the path, or it cannot be written, such as on a full disk.
        """
        with lock_of(path):
            if path.exists() and (method := Table.read(path).header.method) != "imported":
                raise InputError(
                    f"{path}: holds a table that was not imported (its method is {method}), importing would overwrite "
                    "it; name another file"
                )
            self.table.write(path)


Found = tuple[list[Entry], list[tuple[str, str]]]


def import_table(
    path: Path, origin: Origin, *, format: str, unit: str | None = None, spaces: Sequence[str] = ()
) -> Imported:
    """Read a foreign table.

    Args:
        path: the file.
        origin: what it was measured on.
        format: "csv" or "ofa".
        unit: of its latencies, "us" or "ms"; only for a format that does not say it.
        spaces: names of spaces of which it holds every row.

    Raises:
        InputError: for an unknown format or unit, or a unit too many or too few.
        TableError: for what cannot be read, naming the line; or where nothing has an equivalent.
        MissingLatency: where a row of `spaces` is missing.
    """
    if format not in FORMATS:
        raise InputError(suggest("format", format, FORMATS))
    for family in search_spaces.families():
        search_spaces.family(family)  # its blocks become known
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    entries, skipped = FORMATS[format](text, path, unit)
    if not entries:
        first = f"; first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise TableError(f"{path}: none of its {len(skipped)} entries has an equivalent{first}")
    table = Table(_header(origin, format, path, _level(entries, path), spaces), entries)
    for name in spaces:
        table.require(search_spaces.load(name))
    return Imported(table, tuple(skipped))


def _header(origin: Origin, format: str, path: Path, level: str, spaces: Sequence[str]) -> Header:
    return Header(
        device=origin.device,
        cpu=origin.cpu,
        cores=origin.cores,
        runtime=origin.runtime,
        runtime_version=origin.runtime_version,
        variant="unknown",
        precision=origin.precision,
        threads=origin.threads,
        level=level,
        spaces=tuple(spaces),
        method="imported",
        protocol=f"imported from {path.name} ({format}), as measured by others",
        date=origin.date,
        sentinel_us=float("nan"),  # there was none
    )


def _level(entries: Iterable[Entry], path: Path) -> str:
    levels = {"block" if isinstance(entry.row.unit, Block) else "op" for entry in entries}
    if len(levels) > 1:
        raise TableError(f"{path}: holds blocks and ops; a table has one level, so import them into one each")
    return levels.pop()


def _read_csv(text: str, path: Path, unit: str | None) -> Found:
    if unit is not None:
        raise InputError("unit: a CSV says it by its column, us or ms; leave --unit out")
    lines = csv.reader(text.splitlines())
    columns = [name.strip() for name in next(lines, [])]
    units = [name for name in FACTORS if name in columns]
    lacking = [name for name in ("block", "fields", "inputs") if name not in columns]
    known = {"block", "fields", "inputs", "count", *FACTORS, *(f"spread_{name}" for name in FACTORS)}
    if lacking or len(units) != 1:
        raise TableError(
            f"{path}:1: expected the columns block,fields,inputs and either us or ms, then spread_us or spread_ms and "
            f"count if wanted; got {','.join(columns) or 'nothing'}"
        )
    for name in columns:
        if name not in known:
            raise TableError(f"{path}:1: {suggest('column', name, known)}")
    entries: dict[Row, Entry] = {}
    for number, cells in enumerate(lines, 2):
        if not cells:
            continue
        where = f"{path}:{number}"
        if len(cells) != len(columns):
            raise TableError(f"{where}: expected {len(columns)} columns, got {len(cells)}")
        line = dict(zip(columns, map(str.strip, cells), strict=True))
        row = _row(line, where)
        if row in entries:
            raise TableError(f"{where}: second row for {row}")
        us = FACTORS[units[0]] * _number(line[units[0]], f"{where}, column {units[0]}")
        spread = sum(
            FACTORS[name] * _number(line[f"spread_{name}"], f"{where}, column spread_{name}")
            for name in FACTORS
            if line.get(f"spread_{name}")
        )
        count = int(_number(line.get("count") or "0", f"{where}, column count"))
        entries[row] = Entry(row, us, spread, count, "imported")
    return list(entries.values()), []


def _row(line: Mapping[str, str], where: str) -> Row:
    """The row of a line, which its block can be built for."""
    try:
        row = Row(
            parse_unit(line["block"], line["fields"]), tuple(Shape.parse(text) for text in line["inputs"].split())
        )
    except InputError as error:
        raise TableError(f"{where}: {error}") from error
    try:
        calls_of_unit(row)
    except Exception as error:  # whatever a block or PyTorch raises for shapes that do not fit
        raise TableError(f"{where}: {row} cannot be built: {error}") from error
    return row


def _number(text: Any, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError) as error:
        raise TableError(f"{where}: expected a number, got {text!r}") from error
    if not 0 <= value <= MOST_US / 1000:  # milliseconds may be meant
        raise TableError(f"{where}: expected a finite number >= 0, at most {MOST_US / 1000:g}; got {brief(text)}")
    return value


def _read_ofa(text: str, path: Path, unit: str | None) -> Found:
    if unit is None:
        raise InputError("unit: these files do not say it; give --unit us or --unit ms")
    if unit not in FACTORS:
        raise InputError(suggest("unit", unit, FACTORS))
    try:
        content = read_yaml(text, str(path))
    except InputError as error:
        raise TableError(str(error)) from error
    if not isinstance(content, dict):
        raise TableError(f"{path}: expected a mapping from layers to their latencies, got {type(content).__name__}")
    entries: dict[Row, Entry] = {}
    skipped = []
    for key, values in content.items():
        where = f"{path}, {key}"
        if not isinstance(values, dict) or "mean" not in values:
            raise TableError(f"{where}: expected a mapping with 'mean', got {values!r}")
        row = _row_of_ofa(str(key))
        if isinstance(row, str):
            skipped.append((str(key), row))
            continue
        us = FACTORS[unit] * _number(values["mean"], f"{where}, mean")
        spread = FACTORS[unit] * _number(values.get("std", 0), f"{where}, std")
        count = int(_number(values.get("count", 0), f"{where}, count"))
        entries[row] = Entry(row, us, spread, count, "imported")
    return list(entries.values()), skipped


def _row_of_ofa(key: str) -> Row | str:
    """The row that a key of a layer stands for, or why there is none."""
    found = OFA_KEY.fullmatch(key)
    if found is None:
        if key.startswith("expanded_conv"):
            return "the key is not understood"
        return "not an inverted residual; blocks of ours have other layers around theirs"
    if found["se"] == "1":
        return "squeeze-and-excitation, which no block of ours has"
    if found["se"] is not None:  # MobileNetV3: expand is hidden channels
        act = "h-swish" if found["hs"] == "1" else "ReLU"
        return f"{act}, InvertedResidual has ReLU6"
    height, width, cin = map(int, found["input"].split("x"))
    *side, cout = map(int, found["output"].split("x"))
    kernel, stride, expand = (int(found[name]) for name in ("kernel", "stride", "expand"))
    if expand == 1:
        return "expansion 1 without the first convolution, which InvertedResidual always has"
    if side != [-(-height // stride), -(-width // stride)]:
        return f"output {found['output']} does not follow from input {found['input']} and stride {stride}"
    adds = stride == 1 and cin == cout
    if adds != (found["idskip"] == "1"):
        return f"{'without' if adds else 'with'} the input added, InvertedResidual is {'with' if adds else 'without'}"
    return Row(InvertedResidual(cout, stride, kernel, expand), (Shape(1, cin, height, width),))


FORMATS: dict[str, Callable[[str, Path, str | None], Found]] = {"csv": _read_csv, "ofa": _read_ofa}
