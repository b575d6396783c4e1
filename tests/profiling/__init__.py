"""Tests of profiling, nearly all on the fake runtime; a worker that starts no process, and what the tests share."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nas.core.ops import Row, Shape
from nas.core.space import Space
from nas.profiling.backends import FileBackend, load_backend
from nas.profiling.backends.fake import CALL_US, row_us
from nas.profiling.converter import convert
from nas.profiling.device.journal import Sample
from nas.profiling.device.timing import Settings
from nas.profiling.device.worker import Timer
from nas.profiling.probes import Probe
from nas.profiling.process import Converter, ProbeWorker, RuntimeConfig, Weigher
from nas.profiling.profiler import profile
from nas.profiling.worker import load
from nas.tables.table import Table, scope_of
from tests.small import TINY

LOGITS = "Logits classes=10 heads=2 @ 1x48"
NAMES = ("MB4D ratio=2 @ 1x16x16x16", LOGITS, "Stem cout=16 convs=1 @ 1x3x32x32")
#: a chain, the end and the start of a network
FEW = tuple(row for row in TINY.rows() if str(row) in NAMES)
IMAGE = Shape(1, *TINY.input_shape)
SHORT: dict[str, Any] = {"runtime": "fake", "passes": 2, "rounds": 3, "networks": 6}


class LocalWorker(ProbeWorker):
    """A worker in this process: a real one takes seconds to import PyTorch. It cannot survive a crash."""

    def __init__(
        self,
        config: RuntimeConfig,
        probes: Sequence[Probe],
        settings: Settings,
        seed: int,
        spaces: Sequence[str],
        files: Mapping[str, Path],
    ) -> None:
        job = json.loads(json.dumps(self._job(config, probes, settings, seed, spaces, files)))
        backend = load_backend(config.runtime)(config.threads, config.precision, config.variant)
        self.backend = backend
        self._timer = Timer(functools.partial(load, backend), job, bytearray(8))  # type: ignore[arg-type]
        self.failures = self._timer.prepare()

    def round(self, keys: Sequence[str]) -> dict[str, Sample]:
        samples = json.loads(json.dumps(self._timer.round(list(keys))))
        return {key: Sample(sentinel, tuple(calls)) for key, (sentinel, *calls) in samples.items()}

    def stop(self) -> None:
        pass


class LocalConverter(Converter):
    """A converter in this process, as above."""

    def __init__(self, config: RuntimeConfig, spaces: Sequence[str], settings: Settings) -> None:
        backend = load_backend(config.runtime)(config.threads, config.precision, config.variant)
        assert isinstance(backend, FileBackend)
        self._backend = backend

    def convert(self, probes: Sequence[Probe], files: Mapping[str, Path]) -> dict[str, str]:
        items = {probe.key: {"probe": probe.to_data(), "file": str(files[probe.key])} for probe in probes}
        return convert(self._backend, items, bytearray(8))  # type: ignore[arg-type]

    def stop(self) -> None:
        pass


class LocalWeigher(Weigher):
    """Makes up the memory of networks."""

    def __init__(self, *args: Any) -> None:
        pass

    def weigh(self, probe: Probe, files: Mapping[str, Path]) -> int:
        assert probe.arch is not None
        return 10**6 + len(probe.arch.to_text())

    def stop(self) -> None:
        pass


def stay_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure and convert in this process; the memory of networks is made up."""
    monkeypatch.setattr("nas.profiling.bench.ProbeWorker", LocalWorker)
    monkeypatch.setattr("nas.profiling.bench.Converter", LocalConverter)
    monkeypatch.setattr("nas.profiling.bench.Weigher", LocalWeigher)


def true_us(row: Row) -> float:
    """What the fake runtime's table should say of a row: the first row has what a call costs."""
    return row_us(row) + (CALL_US if row.inputs == (IMAGE,) else 0.0)


def few(path: Path, **changes: Any) -> Table:
    """Profile the few rows."""
    return profile(TINY, path=path, rows=FEW, **(SHORT | changes))


def samples_of(path: Path, space: Space = TINY) -> Path:
    """The side file of a table."""
    return path.with_name(f"{path.name}.{scope_of(space).replace('/', '-')}.samples.jsonl")


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that end; none where there is no file yet."""
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []
