"""Runs batches of probes in fresh worker processes until every probe has its samples, and writes each round down."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from nas.core.errors import MeasureError
from nas.profiling.backends import FileBackend, load_backend
from nas.profiling.cache import Cache
from nas.profiling.probes import Probe
from nas.profiling.process import Converter, Engine, Weigher, Worker, WorkerDeathError
from nas.profiling.protocol import TOLERANCE, Settings, errors_of, good, reference_of
from nas.profiling.samples import Log
from nas.profiling.sentinel import sentinel

PROBE_SECONDS = 0.07  # to build, export, load and warm a probe
WORKER_SECONDS = 2.0  # to start a process

Progress = Callable[[float, float, float | None, str], None]
Item = tuple[tuple[Probe, float], ...]  # probes that are timed in the same rounds, and their weights in a row's time


def silent(done: float, total: float, seconds_left: float | None, text: str) -> None:
    """A progress callback that shows nothing."""


@dataclass
class Bench:
    """One piece of measuring work; a context manager, since it keeps a process that converts probes while it runs.

    Attributes:
        engine: runtime and its settings.
        settings: how long to measure.
        log: receives the samples, and says which are there already.
        seed: of orders.
        spaces: names of the spaces whose blocks the probes use.
        failures: why probes cannot be measured, by key; it grows.
        deaths: why probes took a process down that are to be tried once more, by key.
    """

    engine: Engine
    settings: Settings
    log: Log
    seed: int = 0
    spaces: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    deaths: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Bench:
        self._converter: Converter | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop_converting()

    def run(self, items: Sequence[Item], clock: Clock, passes: Iterable[int] | None = None) -> None:
        """Measure what is missing of these items, in these passes or all."""
        for number in range(self.settings.passes) if passes is None else passes:
            for batch in self._batches(self.missing(number, items)):
                if clock.is_over:
                    return
                self._run_batch(number, batch, clock)

    def missing(self, number: int, items: Iterable[Item]) -> list[Item]:
        """The items with a probe that needs another round in pass `number`."""
        reference = reference_of(self.log.samples)
        return [item for item in items if self._open(number, item, reference)]

    def seconds(self, items: Sequence[Item]) -> float:
        """About how long the missing samples take."""
        total = 0.0
        for number in range(self.settings.passes):
            missing = self.missing(number, items)
            total += WORKER_SECONDS * len(list(self._batches(missing)))
            for probe in {probe for item in missing for probe, _ in item}:
                rounds = max(self.settings.rounds - len(self.log.taken(number, probe.key)), 1)
                total += PROBE_SECONDS + rounds * self.settings.sample_seconds(probe)
        return total

    def _open(self, number: int, item: Item, reference: float) -> list[str]:
        """The probes of an item that need another round, by key: those too short of samples, else those that most of
        the doubt comes from.
        """
        if lacking := [probe.key for probe, _ in item if self._lacks(number, probe.key, reference)]:
            return lacking
        terms = [(self.log.taken(number, probe.key), weight) for probe, weight in item]
        error, shares = errors_of(terms, reference)
        if error <= TOLERANCE:
            return []
        doubtful = [probe.key for (probe, _), share in zip(item, shares, strict=True) if share >= 1 / (2 * len(item))]
        return [key for key in doubtful if self._below_limit(number, key)]

    def _below_limit(self, number: int, key: str) -> bool:
        return len(self.log.taken(number, key)) < self.settings.limit

    def _lacks(self, number: int, key: str, reference: float) -> bool:
        taken = self.log.taken(number, key)
        if len(taken) < self.settings.rounds:
            return True
        return good(taken, reference) < self.settings.enough and self._below_limit(number, key)

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        size = 0
        for item in items:
            extra = sum(probe.weight_bytes for probe, _ in item)
            if batch and (len(batch) >= self.settings.batch_rows or size + extra > self.settings.batch_bytes):
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += extra
        if batch:
            yield batch

    def _run_batch(self, number: int, batch: list[Item], clock: Clock) -> None:
        while True:
            batch = [item for item in batch if not any(probe.key in self.failures for probe, _ in item)]
            batch = self.missing(number, batch)
            probes = {p.key: p for item in batch for p, _ in item if self._below_limit(number, p.key)}
            if not probes:
                return
            text = f"pass {number + 1} of {self.settings.passes}"
            clock.say(f"{text}: preparing {len(probes)} graphs")
            files = self.convert(probes.values())
            if any(key in self.failures for key in probes):
                continue  # without those
            try:
                with self._worker(number, probes.values(), files) as worker:
                    self.failures.update(worker.failures)
                    clock.add(WORKER_SECONDS + PROBE_SECONDS * len(probes))
                    loaded = [item for item in batch if not any(p.key in worker.failures for p, _ in item)]
                    self._rounds(number, worker, loaded, clock, text)
                return
            except WorkerDeathError as death:
                self.bury(death)

    def bury(self, death: WorkerDeathError) -> None:
        """Note over which probe a process died: the first time it may be chance, the second time the probe fails.

        Raises:
            WorkerDeathError: where it died twice over no probe.
        """
        if death.key not in self.deaths:
            self.deaths[death.key] = str(death)
        elif death.key:
            self.failures[death.key] = str(death)
        else:
            raise death

    def _worker(self, number: int, probes: Iterable[Probe], files: dict[str, Path]) -> Worker:
        return Worker(self.engine, list(probes), self.settings, self.seed + number, self.spaces, files)

    def weigher(self, files: dict[str, Path]) -> Weigher:
        """A process that measures the memory of networks."""
        return Weigher(self.engine, self.settings, self.spaces, files)

    def convert(self, probes: Iterable[Probe]) -> dict[str, Path]:
        """The files of the probes and of the sentinel, by key, with those that were lacking; none for a runtime that
        loads no files. What cannot be converted stands in `failures` then.
        """
        if self._cache is None:
            return {}
        wanted = [sentinel(), *probes]
        files = {probe.key: self._cache.path(probe) for probe in wanted}
        while lacking := [probe for probe in self._cache.lacking(wanted) if probe.key not in self.failures]:
            self._cache.shrink()
            try:
                if self._converter is None:
                    self._converter = Converter(self.engine, self.spaces, self.settings)
                self.failures.update(self._converter.convert(lacking, files))
            except WorkerDeathError as death:
                self.bury(death)
                self._stop_converting()
            self._cache.require_room()
        if wanted[0].key in self.failures:
            raise MeasureError(
                f"{self.engine.runtime} cannot run the reference block: {self.failures[wanted[0].key]}; see to the "
                "runtime's installation"
            )
        return files

    @functools.cached_property
    def _cache(self) -> Cache | None:
        return Cache(self.engine) if issubclass(load_backend(self.engine.runtime), FileBackend) else None

    def _stop_converting(self) -> None:
        if self._converter is not None:
            self._converter.stop()
            self._converter = None

    def _rounds(self, number: int, worker: Worker, items: list[Item], clock: Clock, text: str) -> None:
        probes = {probe.key: probe for item in items for probe, _ in item}
        while True:
            reference = reference_of(self.log.samples)
            keys = list(dict.fromkeys(key for item in items for key in self._open(number, item, reference)))
            if not keys or clock.is_over:
                return
            done = min(len(self.log.taken(number, key)) for key in keys)
            clock.say(f"{text}: round {done + 1}")
            samples = worker.round(keys)
            new = [key for key in keys if len(self.log.taken(number, key)) < self.settings.rounds]
            self.log.add(number, samples)
            clock.add(sum(self.settings.sample_seconds(probes[key]) for key in new))


class Clock:
    """Work in estimated seconds, and what really passes.

    Args:
        total: estimated seconds of all work.
        progress: called with work done, total work, seconds left and what is going on.
        until: when to stop, by `time.monotonic()`.
    """

    def __init__(self, total: float, progress: Progress = silent, until: float = math.inf) -> None:
        self.total, self.progress, self.until = total, progress, until
        self.done = 0.0
        self.start = time.monotonic()
        self.text = ""

    def say(self, text: str) -> None:
        """What is going on."""
        self.text = text
        self._show()

    def add(self, seconds: float) -> None:
        """Work done, in estimated seconds."""
        self.done = min(self.done + seconds, self.total)
        self._show()

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return self.left <= 0

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.until - time.monotonic()

    @property
    def pace(self) -> float:
        """Seconds that an estimated second really took so far."""
        return (time.monotonic() - self.start) / self.done if self.done else 1.0

    def _show(self) -> None:
        self.progress(self.done, self.total, min((self.total - self.done) * self.pace, self.left), self.text)
