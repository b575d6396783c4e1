"""The profiler's side of its processes: start one, ask it for rounds or files, notice when it dies and over what."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import nas
from nas.core.errors import MeasureError
from nas.profiling.probes import Probe
from nas.profiling.protocol import Settings
from nas.profiling.samples import Sample
from nas.profiling.sentinel import sentinel

START_SECONDS = 600.0  # for a process to import what it needs and to load the reference block
WAIT_SECONDS = 0.5  # between looks at what a process is busy with


@dataclass(frozen=True)
class Engine:
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


class WorkerDeathError(MeasureError):
    """A process ended by itself, or was ended because it hung; never leaves this package.

    Attributes:
        key: of the probe it was busy with; "" where it was with none.
    """

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.key = key


class _Child:
    """A process that answers JSON lines with JSON lines; a context manager, since it has to be stopped.

    Args:
        module: what it runs.
        threads: for libraries that ask OpenMP.
        settings: how long it may be busy with one probe.
    """

    def __init__(self, module: str, threads: int, settings: Settings) -> None:
        self._settings = settings
        self._probes: Sequence[Probe] = ()  # that it may be busy with
        # two files without a name, which no kill leaves behind
        self._busy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed when the process is stopped
        self._busy.write(struct.pack("q", -1))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the profiler, which ends it
            pass_fds=[self._busy.fileno()],
            env=_environment(threads),
        )

    def _first(self, request: Any) -> dict[str, Any]:
        try:
            return self._ask(request)
        except BaseException:
            self.stop()
            raise

    def _ask(self, request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.pwrite(self._busy.fileno(), struct.pack("q", -1), 0)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        self._wait()
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _wait(self) -> None:
        """Wait for an answer, as long as the process goes from probe to probe."""
        assert self._process.stdout is not None
        busy, since = self._number(), time.monotonic()
        while not select.select([self._process.stdout], [], [], WAIT_SECONDS)[0]:
            if self._number() != busy:
                busy, since = self._number(), time.monotonic()
            limit = self._settings.patience_of(self._probes[busy]) if busy >= 0 else START_SECONDS
            if time.monotonic() - since > limit:
                self._kill()
                raise self._error(busy, f"it hung: no answer for {limit:.0f} s, so its process was ended")

    def _number(self) -> int:
        """The number of the probe that it is busy with; -1 for none."""
        return int(struct.unpack("q", os.pread(self._busy.fileno(), 8, 0))[0])

    def _death(self) -> WorkerDeathError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = f"the process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
        return self._error(self._number(), reason + (f": {said[-1]}" if said else ""))

    def _error(self, busy: int, reason: str) -> WorkerDeathError:
        return WorkerDeathError(reason, self._probes[busy].key if busy >= 0 else "")

    def _kill(self) -> None:
        """End the process, with what it has started itself."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the process."""
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._errors, self._busy):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what it had not read is lost, as meant
                    continue

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Worker(_Child):
    """A fresh process with these probes loaded, which times them.

    Args:
        engine: runtime and its settings.
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
        engine: Engine,
        probes: Sequence[Probe],
        settings: Settings,
        seed: int,
        spaces: Sequence[str],
        files: Mapping[str, Path],
    ) -> None:
        super().__init__("nas.profiling.worker", engine.threads, settings)
        self._probes = probes
        job = self._job(engine, probes, settings, seed, spaces, files)
        answer = self._first(job | {"busy": self._busy.fileno()})
        self.failures: dict[str, str] = answer["failures"]

    def _job(
        self,
        engine: Engine,
        probes: Sequence[Probe],
        settings: Settings,
        seed: int,
        spaces: Sequence[str],
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        return {
            **_engine_data(engine, spaces),
            "probes": {probe.key: _probe_data(probe, files) | {"least": settings.least_of(probe)} for probe in probes},
            "sentinel": _probe_data(sentinel(), files),
            "seed": seed,
            "sample_us": settings.sample_us,
            "most": settings.most,
        }

    def round(self, keys: Sequence[str]) -> dict[str, Sample]:
        """One sample of each of these probes."""
        samples: Mapping[str, list[float]] = self._ask(list(keys))["samples"]
        return {key: Sample(sentinel, tuple(calls)) for key, (sentinel, *calls) in samples.items()}

    def __enter__(self) -> Worker:
        return self


class Converter(_Child):
    """A process that writes probes to files; see `Worker` for its arguments.

    Raises:
        WorkerDeathError: where the process cannot even begin.
    """

    def __init__(self, engine: Engine, spaces: Sequence[str], settings: Settings) -> None:
        super().__init__("nas.profiling.converter", engine.threads, settings)
        self._first(_engine_data(engine, spaces) | {"busy": self._busy.fileno()})

    def convert(self, probes: Sequence[Probe], files: Mapping[str, Path]) -> dict[str, str]:
        """Write the files of these probes; why those without one failed, by key.

        Raises:
            WorkerDeathError: where a converter takes the process down.
        """
        self._probes = probes
        failures: dict[str, str] = self._ask({probe.key: _probe_data(probe, files) for probe in probes})["failures"]
        return failures


class Inspector(_Child):
    """A fresh process that runs networks with the runtime's node profiler.

    Args:
        engine: a runtime that gives times of nodes, and its settings.
        settings: how long to wait for it.
        files: the converted sentinel, by key.

    Raises:
        WorkerDeathError: where the process cannot even begin.
    """

    def __init__(self, engine: Engine, settings: Settings, files: Mapping[str, Path]) -> None:
        super().__init__("nas.profiling.inspector", engine.threads, settings)
        job = {"busy": self._busy.fileno(), "sentinel": _probe_data(sentinel(), files)}
        self._first(_engine_data(engine, ()) | job)

    def inspect(self, probe: Probe, file: Path, runs: int, warm_up: int) -> tuple[float, list[list[tuple[str, float]]]]:
        """The sentinel's time in microseconds, and names and times of the nodes of each run behind the warm-up.

        Raises:
            WorkerDeathError: where the runtime takes the process down.
            MeasureError: where it cannot run the network.
        """
        self._probes = [probe]
        answer = self._ask(_probe_data(probe, {probe.key: file}) | {"runs": runs, "warm_up": warm_up})
        if "failure" in answer:
            raise MeasureError(answer["failure"])
        return answer["sentinel_us"], [[(name, us) for name, us in run] for run in answer["runs"]]

    def __enter__(self) -> Inspector:
        return self


class Weigher(_Child):
    """A process that measures the peak memory of networks, each in a fork; see `Worker` for its arguments.

    Raises:
        WorkerDeathError: where the process cannot even begin.
    """

    def __init__(self, engine: Engine, settings: Settings, spaces: Sequence[str], files: Mapping[str, Path]) -> None:
        super().__init__("nas.profiling.memory", engine.threads, settings)
        job = {"busy": self._busy.fileno(), "sentinel": _probe_data(sentinel(), files)}
        self._first(_engine_data(engine, spaces) | job)

    def weigh(self, probe: Probe, files: Mapping[str, Path]) -> int:
        """The bytes that loading and running a network adds to a process.

        Raises:
            WorkerDeathError: where the process dies or hangs.
            MeasureError: where the runtime cannot run the network.
        """
        self._probes = [probe]
        answer = self._ask(_probe_data(probe, files))
        if "death" in answer:
            raise WorkerDeathError(answer["death"], probe.key)
        if "failure" in answer:
            raise MeasureError(answer["failure"])
        return int(answer["bytes"])


def _engine_data(engine: Engine, spaces: Sequence[str]) -> dict[str, Any]:
    return {
        "runtime": engine.runtime,
        "threads": engine.threads,
        "precision": engine.precision,
        "variant": engine.variant,
        "spaces": list(spaces),
    }


def _probe_data(probe: Probe, files: Mapping[str, Path]) -> dict[str, Any]:
    """A probe for a process that builds it, or its file for one that loads it."""
    data: dict[str, Any] = {"probe": probe.to_data()}
    if probe.key in files:
        data |= {"file": str(files[probe.key]), "shapes": [list(shape) for shape in probe.shapes()]}
    return data


def _environment(threads: int) -> dict[str, str]:
    """The same code as here, and as many threads for libraries that ask OpenMP."""
    path = [str(Path(nas.__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(threads)}
