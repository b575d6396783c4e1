"""The profiler's side of its processes: what each is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.core.errors import MeasureError
from nas.profiling.device.process import Child, Worker, WorkerDeathError
from nas.profiling.device.timing import Settings
from nas.profiling.probes import Probe
from nas.profiling.sentinel import sentinel


@dataclass(frozen=True)
class RuntimeConfig:
    """Which runtime, and how it runs.

    Attributes:
        runtime: name of the backend.
        threads: threads inside one inference.
        precision: of weights and activations.
        variant: of the backend, None for its first.
    """

    runtime: str
    threads: int = 1
    precision: str = "fp32"
    variant: str | None = None


class ProbeWorker(Worker):
    """A fresh process with these probes loaded, which times them.

    Args:
        config: runtime and its settings.
        probes: to load.
        settings: how long a sample is.
        seed: of the order in rounds.
        spaces: names of the spaces whose blocks the probes use.
        files: converted probes and the sentinel, by key, for a runtime that loads files.

    Attributes:
        failures: probes that could not be loaded, by key, with the reason.

    Raises:
        WorkerDeathError: where a runtime takes the process down, or hangs; so does `round`.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        probes: Sequence[Probe],
        settings: Settings,
        seed: int,
        spaces: Sequence[str],
        files: Mapping[str, Path],
    ) -> None:
        job = self._job(config, probes, settings, seed, spaces, files)
        super().__init__("nas.profiling.worker", config.threads, settings, probes, job)

    def _job(
        self,
        config: RuntimeConfig,
        probes: Sequence[Probe],
        settings: Settings,
        seed: int,
        spaces: Sequence[str],
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        return {
            **_engine_data(config, spaces),
            "graphs": {probe.key: _probe_data(probe, files) | {"least": settings.least_of(probe)} for probe in probes},
            "sentinel": _probe_data(sentinel(), files),
            "seed": seed,
            "sample_us": settings.sample_us,
            "most": settings.most,
        }


class Converter(Child):
    """A process that writes probes to files; see `ProbeWorker` for its arguments.

    Raises:
        WorkerDeathError: where the process cannot even begin.
    """

    def __init__(self, config: RuntimeConfig, spaces: Sequence[str], settings: Settings) -> None:
        super().__init__("nas.profiling.converter", config.threads, settings)
        self._first(_engine_data(config, spaces) | {"busy": self._busy.fileno()})

    def convert(self, probes: Sequence[Probe], files: Mapping[str, Path]) -> dict[str, str]:
        """Write the files of these probes; why those without one failed, by key.

        Raises:
            WorkerDeathError: where a converter takes the process down.
        """
        self._graphs = probes
        failures: dict[str, str] = self._ask({probe.key: _probe_data(probe, files) for probe in probes})["failures"]
        return failures


class Inspector(Child):
    """A fresh process that runs networks with the runtime's node profiler.

    Args:
        config: a runtime that gives times of nodes, and its settings.
        settings: how long to wait for it.
        files: the converted sentinel, by key.

    Raises:
        WorkerDeathError: where the process cannot even begin.
    """

    def __init__(self, config: RuntimeConfig, settings: Settings, files: Mapping[str, Path]) -> None:
        super().__init__("nas.profiling.inspector", config.threads, settings)
        job = {"busy": self._busy.fileno(), "sentinel": _probe_data(sentinel(), files)}
        self._first(_engine_data(config, ()) | job)

    def inspect(self, probe: Probe, file: Path, runs: int, warm_up: int) -> tuple[float, list[list[tuple[str, float]]]]:
        """The sentinel's time in microseconds, and names and times of the nodes of each run behind the warm-up.

        Raises:
            WorkerDeathError: where the runtime takes the process down.
            MeasureError: where it cannot run the network.
        """
        self._graphs = [probe]
        answer = self._ask(_probe_data(probe, {probe.key: file}) | {"runs": runs, "warm_up": warm_up})
        if "failure" in answer:
            raise MeasureError(answer["failure"])
        return answer["sentinel_us"], [[(name, us) for name, us in run] for run in answer["runs"]]

    def __enter__(self) -> Inspector:
        return self


class Weigher(Child):
    """A process that measures the peak memory of networks, each in a fork; see `ProbeWorker` for its arguments.

    Raises:
        WorkerDeathError: where the process cannot even begin.
    """

    def __init__(
        self, config: RuntimeConfig, settings: Settings, spaces: Sequence[str], files: Mapping[str, Path]
    ) -> None:
        super().__init__("nas.profiling.memory", config.threads, settings)
        job = {"busy": self._busy.fileno(), "sentinel": _probe_data(sentinel(), files)}
        self._first(_engine_data(config, spaces) | job)

    def weigh(self, probe: Probe, files: Mapping[str, Path]) -> int:
        """The bytes that loading and running a network adds to a process.

        Raises:
            WorkerDeathError: where the process dies or hangs.
            MeasureError: where the runtime cannot run the network.
        """
        self._graphs = [probe]
        answer = self._ask(_probe_data(probe, files))
        if "death" in answer:
            raise WorkerDeathError(answer["death"], probe.key)
        if "failure" in answer:
            raise MeasureError(answer["failure"])
        return int(answer["bytes"])


def _engine_data(config: RuntimeConfig, spaces: Sequence[str]) -> dict[str, Any]:
    return {
        "runtime": config.runtime,
        "threads": config.threads,
        "precision": config.precision,
        "variant": config.variant,
        "spaces": list(spaces),
    }


def _probe_data(probe: Probe, files: Mapping[str, Path]) -> dict[str, Any]:
    """A probe for a process that builds it, or its file for one that loads it."""
    data: dict[str, Any] = {"probe": probe.to_data()}
    if probe.key in files:
        data |= {"file": str(files[probe.key]), "shapes": [list(shape) for shape in probe.shapes()]}
    return data
