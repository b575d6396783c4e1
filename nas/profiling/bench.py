"""Runs batches of probes in fresh worker processes until every probe has its samples, and writes each round down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nas.arch import calls_of
from nas.profiling.probes import Probe
from nas.profiling.process import Engine, Worker, WorkerDeathError
from nas.profiling.protocol import Settings, good, reference_of
from nas.profiling.samples import Log
from nas.tracing import macs_of_unit

MACS_PER_US = 3e4  # for estimates before anything is measured
PROBE_SECONDS = 0.07  # to build, export, load and warm a probe
WORKER_SECONDS = 3.0  # to start a process
SENTINEL_US = 1200.0

Progress = Callable[[float, float, float | None, str], None]
Item = tuple[Probe, ...]  # probes that are timed in the same rounds


def silent(done: float, total: float, seconds_left: float | None, text: str) -> None:
    """A progress callback that shows nothing."""


@dataclass
class Bench:
    """One piece of measuring work.

    Attributes:
        engine: runtime and its settings.
        settings: how long to measure.
        log: receives the samples, and says which are there already.
        seed: of weights and orders.
        spaces: names of the spaces whose blocks the probes use.
        progress: called with work done, total work and seconds left.
    """

    engine: Engine
    settings: Settings
    log: Log
    seed: int = 0
    spaces: tuple[str, ...] = ()
    progress: Progress = silent

    def run(self, items: Sequence[Item]) -> dict[str, str]:
        """Measure what is missing of these items; the reasons of probes that failed, by key."""
        failures: dict[str, str] = {}
        clock = _Clock(self.seconds(items), self.progress)
        for number in range(self.settings.passes):
            for batch in self._batches(self.missing(number, items)):
                self._run_batch(number, batch, failures, clock)
        return failures

    def missing(self, number: int, items: Iterable[Item]) -> list[Item]:
        """The items with a probe that lacks samples in pass `number`."""
        reference = reference_of(self.log.samples)
        return [item for item in items if any(self._lacks(number, probe.key, reference) for probe in item)]

    def seconds(self, items: Sequence[Item]) -> float:
        """About how long the missing samples take."""
        total = 0.0
        for number in range(self.settings.passes):
            missing = self.missing(number, items)
            total += WORKER_SECONDS * len(list(self._batches(missing)))
            for probe in {probe for item in missing for probe in item}:
                rounds = max(self.settings.rounds - len(self.log.taken(number, probe.key)), 1)
                total += PROBE_SECONDS + rounds * self._sample_seconds(probe)
        return total

    def _sample_seconds(self, probe: Probe) -> float:
        us = 10 + _macs(probe) / MACS_PER_US
        calls = min(max(self.settings.sample_us / us, self.settings.least), self.settings.most)
        return (SENTINEL_US + calls * us) / 1e6

    def _lacks(self, number: int, key: str, reference: float) -> bool:
        taken = self.log.taken(number, key)
        if len(taken) < self.settings.rounds:
            return True
        return good(taken, reference) < self.settings.enough and len(taken) < self.settings.limit

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        size = 0
        for item in items:
            extra = sum(probe.weight_bytes for probe in item)
            if batch and (len(batch) >= self.settings.batch_rows or size + extra > self.settings.batch_bytes):
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += extra
        if batch:
            yield batch

    def _run_batch(self, number: int, batch: list[Item], failures: dict[str, str], clock: _Clock) -> None:
        while True:
            batch = [item for item in batch if not any(probe.key in failures for probe in item)]
            probes = {probe.key: probe for item in batch for probe in item}
            if not probes:
                return
            text = f"pass {number + 1} of {self.settings.passes}"
            clock.say(f"{text}: preparing {len(probes)} graphs")
            try:
                with Worker(
                    self.engine, list(probes.values()), self.settings, self.seed + number, self.spaces
                ) as worker:
                    failures.update(worker.failures)
                    clock.add(WORKER_SECONDS + PROBE_SECONDS * len(probes))
                    self._rounds(number, worker, {k: p for k, p in probes.items() if k not in failures}, clock, text)
                return
            except WorkerDeathError as death:
                failures[death.key] = str(death)

    def _rounds(self, number: int, worker: Worker, probes: dict[str, Probe], clock: _Clock, text: str) -> None:
        while True:
            reference = reference_of(self.log.samples)
            keys = [key for key in probes if self._lacks(number, key, reference)]
            if not keys:
                return
            done = min(len(self.log.taken(number, key)) for key in keys)
            clock.say(f"{text}: round {done + 1}")
            samples = worker.round(keys)
            repeats = sum(len(self.log.taken(number, key)) >= self.settings.rounds for key in keys)
            self.log.add(number, samples)
            if repeats < len(keys):
                clock.add(sum(self._sample_seconds(probes[key]) for key in keys))


def _macs(probe: Probe) -> float:
    rows = probe.rows if probe.arch is None else [call.row for call in calls_of(probe.arch)]
    return sum(map(macs_of_unit, rows))


class _Clock:
    """Work in estimated seconds, and what really passes."""

    def __init__(self, total: float, progress: Progress) -> None:
        self.total, self.progress = total, progress
        self.done = 0.0
        self.start = time.monotonic()
        self.text = ""

    def say(self, text: str) -> None:
        self.text = text
        self._show()

    def add(self, seconds: float) -> None:
        self.done = min(self.done + seconds, self.total)
        self._show()

    def _show(self) -> None:
        pace = (time.monotonic() - self.start) / self.done if self.done else 1.0
        self.progress(self.done, self.total, (self.total - self.done) * pace, self.text)
