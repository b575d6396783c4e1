"""Runs batches of graphs in fresh worker processes until every graph has its samples, and writes each round down."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Callable, Dict, Iterable, Iterator, Optional, Sequence, Tuple

from nas.core.errors import MeasureError
from nas.profiling.device.journal import Log
from nas.profiling.device.process import Worker, WorkerDeathError
from nas.profiling.device.timing import TOLERANCE, Graph, Settings, errors_of, good, reference_of

PROBE_SECONDS = 0.07  # to build, export, load and warm a graph
WORKER_SECONDS = 2.0  # to start a process
HANGS_IN_A_ROW = 4  # with no sample between, after which the runtime is given up

Progress = Callable[[float, float, Optional[float], str], None]
Item = Tuple[Tuple[Graph, float], ...]  # graphs that are timed in the same rounds, and their weights in a row's time
Graphs = Dict[str, Graph]  # by key


def silent(done: float, total: float, seconds_left: float | None, text: str) -> None:
    """A progress callback that shows nothing."""


class Schedule(ABC):
    """Which graphs need another round, and the processes that take it.

    Attributes:
        settings: how long to measure.
        log: receives the samples, and says which are there already.
        failures: why graphs cannot be measured, by key; it grows.
        deaths: why graphs took a process down that are to be tried once more, by key.
    """

    settings: Settings
    log: Log
    failures: dict[str, str]
    deaths: dict[str, str]
    hangs = 0  # in a row, with no sample between

    def prepare(self, graphs: Sequence[Graph]) -> None:  # noqa: B027  most have nothing to do
        """Do what is needed before graphs are loaded; what fails stands in `failures` then."""

    @abstractmethod
    def worker(self, number: int, graphs: Sequence[Graph]) -> Worker:
        """A process with these graphs loaded, for pass `number`."""

    def run(self, items: Sequence[Item], clock: Clock, passes: Iterable[int] | None = None) -> None:
        """Measure what is missing of these items, in these passes or all."""
        for number in range(self.settings.passes) if passes is None else passes:
            for batch in self._batches(self.missing(number, items)):
                if clock.is_over:
                    return
                self._run_batch(number, batch, clock)

    def missing(self, number: int, items: Iterable[Item]) -> list[Item]:
        """The items with a graph that needs another round in pass `number`."""
        reference = reference_of(self.log.samples)
        return [item for item in items if self._open(number, item, reference)]

    def seconds(self, items: Sequence[Item]) -> float:
        """About how long the missing samples take."""
        total = 0.0
        for number in range(self.settings.passes):
            missing = self.missing(number, items)
            total += WORKER_SECONDS * len(list(self._batches(missing)))
            for graph in {graph for item in missing for graph, _ in item}:
                rounds = max(self.settings.rounds - len(self.log.taken(number, graph.key)), 1)
                total += PROBE_SECONDS + rounds * self.settings.sample_seconds(graph)
        return total

    def _open(self, number: int, item: Item, reference: float) -> list[str]:
        """The graphs of an item that need another round, by key: those too short of samples, else those that most of
        the doubt comes from.
        """
        lacking = [graph.key for graph, _ in item if self._lacks(number, graph.key, reference)]
        if lacking:
            return lacking
        terms = [(self.log.taken(number, graph.key), weight) for graph, weight in item]
        error, shares = errors_of(terms, reference)
        if error <= TOLERANCE:
            return []
        doubtful = [graph.key for (graph, _), share in zip(item, shares) if share >= 1 / (2 * len(item))]
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
            extra = sum(graph.weight_bytes for graph, _ in item)
            if batch and (len(batch) >= self.settings.batch_rows or size + extra > self.settings.batch_bytes):
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += extra
        if batch:
            yield batch

    def _run_batch(self, number: int, batch: list[Item], clock: Clock) -> None:
        while True:
            batch = [item for item in batch if not any(graph.key in self.failures for graph, _ in item)]
            batch = self.missing(number, batch)
            graphs: Graphs = {p.key: p for item in batch for p, _ in item if self._below_limit(number, p.key)}
            if not graphs:
                return
            text = f"pass {number + 1} of {self.settings.passes}"
            clock.say(f"{text}: preparing {len(graphs)} graphs")
            self.prepare(list(graphs.values()))
            if any(key in self.failures for key in graphs):
                continue  # without those
            try:
                with self.worker(number, list(graphs.values())) as worker:
                    self.failures.update(worker.failures)
                    clock.add(WORKER_SECONDS + PROBE_SECONDS * len(graphs))
                    loaded = [item for item in batch if not any(p.key in worker.failures for p, _ in item)]
                    self._rounds(number, worker, loaded, clock, text)
                return
            except WorkerDeathError as death:
                self.count_hang(death)
                self.bury(death)

    def count_hang(self, death: WorkerDeathError) -> None:
        """Give a runtime up that does nothing but hang.

        Raises:
            MeasureError: it hung several times with no sample between.
        """
        self.hangs = self.hangs + 1 if death.hung else 0
        if self.hangs >= HANGS_IN_A_ROW:
            raise MeasureError(
                f"{death.key}: {death}, as {self.hangs} did in a row with nothing measured between. See to it, "
                "or allow more time (--patience); the same command continues"
            ) from death

    def bury(self, death: WorkerDeathError) -> None:
        """Note over which graph a process died: the first time it may be chance, the second time the graph fails.

        Raises:
            MeasureError: where it died twice over no graph.
        """
        if death.key not in self.deaths:
            self.deaths[death.key] = str(death)
        elif death.key:
            self.failures[death.key] = str(death)
        else:
            raise MeasureError(f"{death}; it runs no graph") from death

    def _rounds(self, number: int, worker: Worker, items: list[Item], clock: Clock, text: str) -> None:
        graphs: Graphs = {graph.key: graph for item in items for graph, _ in item}
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
            self.hangs = 0
            clock.add(sum(self.settings.sample_seconds(graphs[key]) for key in new))


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
