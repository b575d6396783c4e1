"""The side that asks: start a process, ask it for rounds, notice when it dies or hangs, and over what."""

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
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping, Sequence

import nas
from nas.core.errors import MeasureError
from nas.core.files import sweep
from nas.profiling.device.journal import Sample
from nas.profiling.device.timing import Graph, Settings

START_SECONDS = 600.0  # for a process to import what it needs and to load the reference block
WAIT_SECONDS = 0.5  # between looks at what a process is busy with


class WorkerDeathError(MeasureError):
    """A process ended by itself, or was ended because it hung; never leaves this package.

    Attributes:
        key: of the graph it was busy with; "" where it was with none.
        hung: whether it was ended because it hung.
    """

    def __init__(self, reason: str, key: str = "", hung: bool = False) -> None:
        super().__init__(reason)
        self.key, self.hung = key, hung


class Child:
    """A process that answers JSON lines with JSON lines; a context manager, since it has to be stopped.

    Args:
        module: what it runs.
        threads: for libraries that ask OpenMP.
        settings: how long it may be busy with one graph.
    """

    def __init__(self, module: str, threads: int, settings: Settings) -> None:
        self._settings = settings
        self._graphs: Sequence[Graph] = ()  # that it may be busy with
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
            env=environment(threads),
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
        """Wait for an answer, as long as the process goes from graph to graph."""
        assert self._process.stdout is not None
        busy, since = self._number(), time.monotonic()
        while not select.select([self._process.stdout], [], [], WAIT_SECONDS)[0]:
            if self._number() != busy:
                busy, since = self._number(), time.monotonic()
            limit = self._settings.patience_of(self._graphs[busy]) if busy >= 0 else START_SECONDS
            if time.monotonic() - since > limit:
                self._kill()
                raise self._error(busy, f"it hung: no answer for {limit:.0f} s, so its process was ended", hung=True)

    def _number(self) -> int:
        """The number of the graph that it is busy with; -1 for none."""
        return int(struct.unpack("q", os.pread(self._busy.fileno(), 8, 0))[0])

    def _death(self) -> WorkerDeathError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = f"the process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
        return self._error(self._number(), reason + (f": {said[-1]}" if said else ""))

    def _error(self, busy: int, reason: str, hung: bool = False) -> WorkerDeathError:
        return WorkerDeathError(reason, self._graphs[busy].key if busy >= 0 else "", hung)

    def _kill(self) -> None:
        """End the process, with what it has started itself."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the process; nothing stays of what it was about to write to temporary files."""
        self._kill()
        sweep()
        for pipe in (self._process.stdin, self._process.stdout, self._errors, self._busy):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what it had not read is lost, as meant
                    continue

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Worker(Child):
    """A fresh process with these graphs loaded, which times them: `nas.profiling.device.worker` says what a job is.

    Attributes:
        failures: graphs that could not be loaded, by key, with the reason.

    Raises:
        WorkerDeathError: where a runtime takes the process down, or hangs; so does `round`.
    """

    def __init__(
        self, module: str, threads: int, settings: Settings, graphs: Sequence[Graph], job: Mapping[str, Any]
    ) -> None:
        super().__init__(module, threads, settings)
        self._graphs = graphs
        self.failures: dict[str, str] = self._first(dict(job, busy=self._busy.fileno()))["failures"]

    def round(self, keys: Sequence[str]) -> dict[str, Sample]:
        """One sample of each of these graphs."""
        samples: Mapping[str, list[float]] = self._ask(list(keys))["samples"]
        return {key: Sample(sentinel, tuple(calls)) for key, (sentinel, *calls) in samples.items()}

    def __enter__(self) -> Worker:
        return self


def environment(threads: int) -> dict[str, str]:
    """The same code as here, and as many threads for libraries that ask OpenMP."""
    path = [str(Path(nas.__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return dict(os.environ, **{"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(threads)})
