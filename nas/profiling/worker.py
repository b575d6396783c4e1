"""The process that times: it prepares probes with one backend, then answers each request for a round with samples.

    python -m nas.profiling.worker

It reads JSON lines from standard input, first the job, then the keys of each round, and writes JSON lines to what was
standard output; whatever a runtime prints goes to standard error. When its input ends it ends, so it never outlives
the profiler. The number of the probe it is busy with stands in a small shared file, for the case that it crashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

import search_spaces
from nas.ops import BiasAttention, LayerNorm, Linear, Shape
from nas.profiling.backends import Backend, FileBackend, Session, load_backend
from nas.profiling.probes import Probe
from nas.tracing import fuse_in_place

#: attention and an MLP, a third of a millisecond: a busy neighbour slows them as much as networks, convolutions half as
#: much
SENTINEL = (
    LayerNorm(96),
    BiasAttention(96, side=7),
    LayerNorm(96),
    Linear(96, 192, act="gelu"),
    Linear(192, 96),
)
SENTINEL_SHAPE = Shape(1, 49, 96)
SENTINEL_CALLS = 3
WARM_UP_CALLS = 3
WEIGHTS_SEED = 0
FILES_BYTES = 2**31  # of converted probes that are kept for the next process


def main() -> None:
    """Serve one job; see the module."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _go_first()
    job = json.loads(sys.stdin.readline())
    for name in job["spaces"]:
        search_spaces.load(name)  # its blocks become known
    torch.set_num_threads(job["threads"])
    backend = load_backend(job["runtime"])(job["threads"], job["precision"], job["variant"])
    with _shared_number(Path(job["busy"])) as busy:
        bench = Bench(backend, job, busy)
        _write(output, {"failures": bench.prepare()})
        for line in sys.stdin:
            _write(output, {"samples": bench.round(json.loads(line))})


def _go_first() -> None:
    """Run before other processes where that is allowed (root).

    Where Linux shares cores between sessions (autogroup), a process's own priority only counts inside its session; the
    profiler starts this process in one of its own.
    """
    with contextlib.suppress(OSError):
        os.nice(-20)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20", encoding="ascii")


@contextlib.contextmanager
def _shared_number(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
        yield memory


def _write(output: IO[str], line: dict[str, Any]) -> None:
    output.write(json.dumps(line) + "\n")
    output.flush()


class Bench:
    """The probes of a job, prepared, and the sentinel.

    Args:
        backend: runs them.
        job: as the profiler sends it: probes by key, seed of orders, folder of converted probes, limits of a sample.
        busy: where to note the number of the probe in work.
    """

    def __init__(self, backend: Backend, job: dict[str, Any], busy: mmap.mmap) -> None:
        self.backend, self.job, self.busy = backend, job, busy
        self.random = random.Random(job["seed"])
        self.kept_bytes = sum(file.stat().st_size for file in Path(job["files"]).iterdir())
        self.sessions: dict[str, Session] = {}
        self.calls: dict[str, int] = {}
        self.numbers = {key: number for number, key in enumerate(job["probes"])}
        reference = fuse_in_place(nn.Sequential(*(op.module() for op in SENTINEL)))
        self.sentinel = backend.prepare(reference, (SENTINEL_SHAPE,))

    def prepare(self) -> dict[str, str]:
        """Load and warm every probe; why those that cannot be loaded fail, by key."""
        failures = {}
        for key, data in self.job["probes"].items():
            self._note(key)
            try:
                session = self._session(Probe.from_data(data))
                us = min(1e6 * session.timed_run() for _ in range(WARM_UP_CALLS))
            except Exception as error:  # whatever a runtime raises belongs to this probe alone
                failures[key] = f"{type(error).__name__}: {error}"
                continue
            self.sessions[key] = session
            self.calls[key] = min(max(round(self.job["sample_us"] / us), self.job["least"]), self.job["most"])
        return failures

    def _session(self, probe: Probe) -> Session:
        """Load a probe, from a file where an earlier process has converted it."""
        if not isinstance(self.backend, FileBackend):
            return self.backend.prepare(probe.module(WEIGHTS_SEED), probe.shapes())
        path = Path(self.job["files"]) / hashlib.sha256(probe.key.encode()).hexdigest()
        if path.exists():
            return self.backend.load(path, probe.shapes())
        begun = path.with_suffix(".tmp")
        self.backend.convert(probe.module(WEIGHTS_SEED), probe.shapes(), begun)
        session = self.backend.load(begun, probe.shapes())
        self.kept_bytes += begun.stat().st_size
        if self.kept_bytes <= FILES_BYTES:
            begun.replace(path)
        else:
            begun.unlink()
        return session

    def round(self, keys: list[str]) -> dict[str, list[float]]:
        """A sample of each probe, in random order: the slower sentinel of before and after, then the calls; in us."""
        self.random.shuffle(keys)
        samples = {}
        before = self._sentinel_us()
        for key in keys:
            self._note(key)
            run = self.sessions[key].timed_run
            calls = [round(1e6 * run(), 2) for _ in range(self.calls[key])]
            after = self._sentinel_us()
            samples[key] = [max(before, after), *calls]
            before = after
        return samples

    def _sentinel_us(self) -> float:
        return round(1e6 * min(self.sentinel.timed_run() for _ in range(SENTINEL_CALLS)), 2)

    def _note(self, key: str) -> None:
        struct.pack_into("q", self.busy, 0, self.numbers[key])


if __name__ == "__main__":
    main()
