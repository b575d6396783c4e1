"""The profiler's side of a worker process: start it, ask for rounds, notice when it dies and over what."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import nas
from nas.errors import MeasureError
from nas.profiling.probes import Probe
from nas.profiling.protocol import Settings
from nas.profiling.samples import Sample


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
    """The worker ended by itself; never leaves this package.

    Attributes:
        key: of the probe it was busy with.
    """

    def __init__(self, reason: str, key: str) -> None:
        super().__init__(reason)
        self.key = key


class Worker:
    """A fresh process with these probes loaded; a context manager, since it has to be stopped.

    Args:
        engine: runtime and its settings.
        probes: to load.
        settings: how long a sample is.
        seed: of the order in rounds.
        spaces: names of the spaces whose blocks the probes use.
        files: folder for converted probes, shared with other processes before and after.

    Attributes:
        failures: probes that could not be loaded, by key, with the reason.

    Raises:
        WorkerDeathError: where a runtime takes the process down; so does `round`.
        MeasureError: where the process cannot even begin.
    """

    def __init__(
        self, engine: Engine, probes: Sequence[Probe], settings: Settings, seed: int, spaces: Sequence[str], files: Path
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nas-worker-")
        self._keys = [probe.key for probe in probes]
        self._busy = Path(self._folder.name) / "busy"
        self._busy.write_bytes(struct.pack("q", -1))
        self._errors = (Path(self._folder.name) / "stderr").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nas.profiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env=_environment(engine.threads),
        )
        try:
            answer = self._ask(self._job(engine, probes, settings, seed, spaces, files))
        except BaseException:
            self.stop()
            raise
        self.failures: dict[str, str] = answer["failures"]

    def _job(
        self, engine: Engine, probes: Sequence[Probe], settings: Settings, seed: int, spaces: Sequence[str], files: Path
    ) -> dict[str, Any]:
        return {
            "runtime": engine.runtime,
            "threads": engine.threads,
            "precision": engine.precision,
            "variant": engine.variant,
            "spaces": list(spaces),
            "probes": {probe.key: probe.to_data() for probe in probes},
            "seed": seed,
            "busy": str(self._busy),
            "files": str(files),
            "sample_us": settings.sample_us,
            "least": settings.least,
            "most": settings.most,
        }

    def round(self, keys: Sequence[str]) -> dict[str, Sample]:
        """One sample of each of these probes."""
        samples: Mapping[str, list[float]] = self._ask(list(keys))["samples"]
        return {key: Sample(sentinel, tuple(calls)) for key, (sentinel, *calls) in samples.items()}

    def _ask(self, request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> MeasureError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = f"the process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
        reason += f": {said[-1]}" if said else ""
        (number,) = struct.unpack("q", self._busy.read_bytes())
        return WorkerDeathError(reason, self._keys[number]) if number >= 0 else MeasureError(reason)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what it had not read is lost, as meant
                    continue
        self._folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _environment(threads: int) -> dict[str, str]:
    """The same code as here, and as many threads for libraries that ask OpenMP."""
    path = [str(Path(nas.__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(threads)}
