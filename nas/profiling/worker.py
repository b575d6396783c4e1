"""The process that times: it loads probes with one backend, then answers each request for a round with samples.

    python -m nas.profiling.worker

It reads JSON lines from standard input, first the job, then the keys of each round, and writes JSON lines to what was
standard output; whatever a runtime prints goes to standard error. When its input ends it ends, so it never outlives
the profiler. The number of the probe it is busy with stands in a small shared file, for the case that it crashes.

Where the runtime loads files, they are there already, and this process does without PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nas.profiling.backends import Backend, FileBackend, Session, load_backend

SENTINEL_CALLS = 12  # behind a network it takes about ten calls to be as quick as it gets
WARM_UP_CALLS = 3
WEIGHTS_SEED = 0


def main() -> None:
    """Serve one job; see the module."""
    answer = answers()
    go_first()
    job = json.loads(sys.stdin.readline())
    backend = load_backend(job["runtime"])(job["threads"], job["precision"], job["variant"])
    if not isinstance(backend, FileBackend):
        import_blocks(job["spaces"], job["threads"])
    with shared_number(job["busy"]) as busy:
        bench = Bench(backend, job, busy)
        answer({"failures": bench.prepare()})
        for line in sys.stdin:
            answer({"samples": bench.round(json.loads(line))})


def import_blocks(spaces: list[str], threads: int) -> None:
    """Import PyTorch and the blocks of spaces."""
    import torch

    import search_spaces

    torch.set_num_threads(threads)
    for name in spaces:
        search_spaces.load(name)  # its blocks become known


def answers() -> Callable[[dict[str, Any]], None]:
    """What writes a line to standard output; from now on, whatever else is printed goes to standard error."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(line: dict[str, Any]) -> None:
        output.write(json.dumps(line) + "\n")
        output.flush()

    return answer


def go_first() -> None:
    """Run before other processes where that is allowed (root).

    Where Linux shares cores between sessions (autogroup), a process's own priority only counts inside its session; the
    profiler starts this process in one of its own.
    """
    with contextlib.suppress(OSError):
        os.nice(-20)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20", encoding="ascii")


@contextlib.contextmanager
def shared_number(file: int) -> Iterator[mmap.mmap]:
    """The small file that says which probe is in work, by its number in this process."""
    with mmap.mmap(file, 8) as memory:
        yield memory


def note(busy: mmap.mmap, number: int) -> None:
    """Say which probe is in work."""
    struct.pack_into("q", busy, 0, number)


class Bench:
    """The probes of a job, loaded, and the sentinel.

    Args:
        backend: runs them.
        job: as the profiler sends it: probes by key, seed of orders, limits of a sample.
        busy: where to note the number of the probe in work.
    """

    def __init__(self, backend: Backend, job: dict[str, Any], busy: mmap.mmap) -> None:
        self.backend, self.job, self.busy = backend, job, busy
        self.random = random.Random(job["seed"])
        self.sessions: dict[str, Session] = {}
        self.calls: dict[str, int] = {}
        self.numbers = {key: number for number, key in enumerate(job["probes"])}
        self.sentinel = self._session(job["sentinel"])

    def prepare(self) -> dict[str, str]:
        """Load and warm every probe; why those that cannot be loaded fail, by key."""
        failures = {}
        for key, item in self.job["probes"].items():
            note(self.busy, self.numbers[key])
            try:
                session = self._session(item)
                us = min(1e6 * session.timed_run() for _ in range(WARM_UP_CALLS))
            except Exception as error:  # whatever a runtime raises belongs to this probe alone
                failures[key] = f"{type(error).__name__}: {error}"
                continue
            self.sessions[key] = session
            self.calls[key] = min(max(round(self.job["sample_us"] / us), item["least"]), self.job["most"])
        return failures

    def _session(self, item: dict[str, Any]) -> Session:
        if isinstance(self.backend, FileBackend):
            return self.backend.load(Path(item["file"]), item["shapes"])
        from nas.profiling.probes import Probe

        probe = Probe.from_data(item["probe"])
        return self.backend.prepare(probe.module(WEIGHTS_SEED), probe.shapes())

    def round(self, keys: list[str]) -> dict[str, list[float]]:
        """A sample of each probe, in random order: the slower sentinel of before and after, then the calls; in us."""
        self.random.shuffle(keys)
        samples = {}
        before = self._sentinel_us()
        for key in keys:
            note(self.busy, self.numbers[key])
            run = self.sessions[key].timed_run
            calls = [round(1e6 * run(), 2) for _ in range(self.calls[key])]
            after = self._sentinel_us()
            samples[key] = [max(before, after), *calls]
            before = after
        return samples

    def _sentinel_us(self) -> float:
        return round(1e6 * min(self.sentinel.timed_run() for _ in range(SENTINEL_CALLS)), 2)


if __name__ == "__main__":
    main()
