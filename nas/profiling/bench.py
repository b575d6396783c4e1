"""The profiler's own schedule: it converts probes where the runtime loads files, and starts its processes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from nas.core.errors import MeasureError
from nas.profiling.backends import FileBackend, load_backend
from nas.profiling.cache import Cache
from nas.profiling.device.journal import Log
from nas.profiling.device.process import WorkerDeathError
from nas.profiling.device.schedule import Clock, Progress, Schedule, silent
from nas.profiling.device.timing import Settings
from nas.profiling.probes import Probe
from nas.profiling.process import Converter, ProbeWorker, RuntimeConfig, Weigher
from nas.profiling.sentinel import sentinel

__all__ = ["Bench", "Clock", "Item", "Progress", "silent"]

Item = tuple[tuple[Probe, float], ...]  # probes that are timed in the same rounds, and their weights in a row's time


@dataclass
class Bench(Schedule):
    """One piece of measuring work; a context manager, since it keeps a process that converts probes while it runs.

    Attributes:
        config: runtime and its settings.
        settings: how long to measure.
        log: receives the samples, and says which are there already.
        seed: of orders.
        spaces: names of the spaces whose blocks the probes use.
        failures: why probes cannot be measured, by key; it grows.
        deaths: why probes took a process down that are to be tried once more, by key.
    """

    config: RuntimeConfig
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

    def prepare(self, graphs: Sequence[Probe]) -> None:  # type: ignore[override]
        self._files = self.convert(graphs)

    def worker(self, number: int, graphs: Sequence[Probe]) -> ProbeWorker:  # type: ignore[override]
        return ProbeWorker(self.config, graphs, self.settings, self.seed + number, self.spaces, self._files)

    def weigher(self, files: dict[str, Path]) -> Weigher:
        """A process that measures the memory of networks."""
        return Weigher(self.config, self.settings, self.spaces, files)

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
                    self._converter = Converter(self.config, self.spaces, self.settings)
                self.failures.update(self._converter.convert(lacking, files))
            except WorkerDeathError as death:
                self.bury(death)
                self._stop_converting()
            self._cache.require_room()
        if wanted[0].key in self.failures:
            raise MeasureError(
                f"{self.config.runtime} cannot run the reference block: {self.failures[wanted[0].key]}; see to the "
                "runtime's installation"
            )
        return files

    @functools.cached_property
    def _cache(self) -> Cache | None:
        return Cache(self.config) if issubclass(load_backend(self.config.runtime), FileBackend) else None

    def _stop_converting(self) -> None:
        if self._converter is not None:
            self._converter.stop()
            self._converter = None
