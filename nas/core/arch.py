"""Architectures: plain data with a JSON and a one-line form, and the calls that one makes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from nas.core.errors import InputError, brief, suggest
from nas.core.ops import LARGEST, Block, Row, Shape, make_unit, parse_unit
from nas.core.tracing import Call, calls_of_unit

Blocks = tuple[Block, ...]
MOST_STAGES, MOST_BLOCKS = 64, 1024  # of a network; of a stage
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Arch:
    """One architecture: plain, frozen, hashable data.

    Attributes:
        family: the space it comes from, whose module defines its blocks.
        input_shape: (C, H, W) of one image.
        classes: number of logits.
        stages: resolved blocks of every stage; the head is the last.
    """

    family: str
    input_shape: tuple[int, int, int]
    classes: int
    stages: tuple[Blocks, ...]

    @functools.cached_property
    def id(self) -> str:
        """Twelve hex digits that name this architecture everywhere."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def stage_name(self, index: int) -> str:
        """`1`, `2`, ... and `head`."""
        return "head" if index == len(self.stages) - 1 else str(index + 1)

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives an equal arch."""
        stages = [[_block_data(block) for block in stage] for stage in self.stages]
        data = {"family": self.family, "input": list(self.input_shape), "classes": self.classes, "stages": stages}
        return json.dumps(data)

    def to_text(self) -> str:
        """The blocks in a line, equal neighbours counted: `Stem cout=16 convs=1; MB4D ratio=2 x3 | Embedding ...`."""
        return " | ".join("; ".join(stage_runs(stage)) for stage in self.stages)

    @classmethod
    def from_text(cls, text: str, family: str, input_shape: tuple[int, int, int], classes: int) -> Arch:
        """Read what `to_text` wrote, for blocks that are already known (`search_spaces.load`).

        Raises:
            InputError: naming what cannot be read.
        """
        parts = text.split(" | ")
        if len(parts) > MOST_STAGES:
            raise InputError(f"expected at most {MOST_STAGES} stages, got {len(parts)}")
        stages = tuple(tuple(_read_runs(stage)) for stage in parts)
        return cls(family, input_shape, classes, stages)

    @classmethod
    def from_json(cls, text: str, where: str = "arch") -> Arch:
        """Read an arch.

        Raises:
            InputError: naming the path inside the JSON, the value, and what was expected.
        """
        try:
            data = json.loads(text, object_pairs_hook=functools.partial(_once, where))
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
        except RecursionError as error:
            raise InputError(f"{where}: not the JSON of an arch: it is nested too deeply") from error
        except InputError:
            raise
        except ValueError as error:  # a number of thousands of digits
            raise InputError(f"{where}: not the JSON of an arch: {error}") from error
        return _read_arch(data, where)


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{where}: key {brief(twice)} stands there twice")
    return found


def stage_runs(stage: Blocks) -> list[str]:
    """The blocks of a stage in words, equal neighbours counted: `Embedding cout=96`, `MB4D ratio=4 x3`."""
    runs = [(str(block), len(list(group))) for block, group in itertools.groupby(stage)]
    return [f"{block} x{count}" if count > 1 else block for block, count in runs]


def _read_runs(text: str) -> Iterator[Block]:
    room = MOST_BLOCKS
    for item in text.split("; "):
        words = item.split()
        counted = re.fullmatch(r"x([0-9]+)", words[-1]) if len(words) > 1 else None
        digits, words = (counted[1], words[:-1]) if counted else ("1", words)
        if not words:
            raise InputError(f"expected blocks such as 'MB4D ratio=4 x3', got {brief(text)}")
        count = int(digits) if len(digits) <= 9 else room + 1
        room -= count
        if count < 1 or room < 0:
            raise InputError(f"{words[0]} x{brief(digits)}: expected 1 to {MOST_BLOCKS} blocks in a stage")
        unit = parse_unit(words[0], " ".join(words[1:]))
        if not isinstance(unit, Block):
            raise InputError(f"{words[0]} is an op, expected a block")
        yield from [unit] * count


def _block_data(block: Block) -> dict[str, Any]:
    return {"block": type(block).__name__} | {item.name: getattr(block, item.name) for item in fields(block)}


def _read_arch(data: Any, where: str) -> Arch:
    import search_spaces

    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object with family, input, classes and stages, got {brief(data)}")
    expected = ("family", "input", "classes", "stages")
    for key in expected:
        if key not in data:
            raise InputError(f"{where}.{key}: is missing")
    if unknown := sorted(set(data) - set(expected)):
        raise InputError(f"{where}: {suggest('key', unknown[0], expected)}")
    family = _expect(data["family"], str, f"{where}.family")
    search_spaces.load(family)  # its blocks become known
    size = _expect(data["input"], list, f"{where}.input")
    if len(size) != 3 or not all(type(item) is int and 1 <= item <= LARGEST for item in size):
        raise InputError(f"{where}.input: expected [channels, height, width], 1 to {LARGEST} each, got {brief(size)}")
    classes = _expect(data["classes"], int, f"{where}.classes")
    if not 1 <= classes <= MOST_CLASSES:
        raise InputError(f"{where}.classes: expected 1 to {MOST_CLASSES}, got {brief(classes)}")
    stages = []
    for number, stage in enumerate(_some(data["stages"], f"{where}.stages", MOST_STAGES)):
        path = f"{where}.stages[{number}]"
        blocks = enumerate(_some(stage, path, MOST_BLOCKS))
        stages.append(tuple(_read_block(block, f"{path}[{index}]") for index, block in blocks))
    return Arch(family, cast(tuple[int, int, int], tuple(size)), classes, tuple(stages))


def _some(value: Any, where: str, most: int) -> list[Any]:
    found: list[Any] = _expect(value, list, where)
    if len(found) > most:
        raise InputError(f"{where}: expected at most {most} entries, got {len(found)}")
    return found


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: expected {kind.__name__}, got {brief(value)}")
    return value


def _read_block(data: Any, where: str) -> Block:
    values = dict(_expect(data, dict, where))
    name = _expect(values.pop("block", None), str, f"{where}.block")
    try:
        unit = make_unit(name, values)
    except (InputError, TypeError) as error:
        raise InputError(f"{where}: {error}") from error
    if not isinstance(unit, Block):
        raise InputError(f"{where}.block: {name} is an op, expected a block")
    return unit


def calls_of(arch: Arch) -> tuple[Call, ...]:
    """The block calls of an arch, composed of memoized blocks; equal to the trace of the whole model.

    Raises:
        InputError: where a block does not fit the shapes that reach it, naming stage and block.
    """
    return tuple(call for call in steps_of(arch) if call.ops)


def steps_of(arch: Arch) -> tuple[Call, ...]:
    """One call for every block of an arch, those without any op among them."""
    streams = {"x": Shape(1, *arch.input_shape)}
    return tuple(
        _advance(block, streams, arch.stage_name(index)) for index, stage in enumerate(arch.stages) for block in stage
    )


def _advance(block: Block, streams: dict[str, Shape], stage: str) -> Call:
    if lacking := [name for name in block.takes if name not in streams]:
        known = ", ".join(streams)
        raise InputError(f"stage {stage}: {block} takes {lacking[0]!r}, but the blocks before it give only {known}")
    call = _staged_call(Row(block, tuple(streams[name] for name in block.takes)), stage)
    streams.update(zip(block.gives, call.outputs, strict=True))
    return call


@functools.cache
def _staged_call(row: Row, stage: str) -> Call:
    try:
        return replace(calls_of_unit(row), stage=stage)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        inputs = ", ".join(map(str, row.inputs))
        raise InputError(f"stage {stage}: {row.unit} does not take inputs {inputs}: {error}") from error
