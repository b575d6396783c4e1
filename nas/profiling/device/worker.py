"""The process that times: it loads graphs with a runtime, then answers each request for a round with samples.

    python -m nas.profiling.device.worker

It reads JSON lines from standard input, first the job, then the keys of each round, and writes JSON lines to what was
standard output; whatever a runtime prints goes to standard error. When its input ends it ends, so it never outlives
who asks. The number of the graph it is busy with stands in a small shared file, for the case that it crashes or hangs.

A job names the runtime with its threads and precision, `graphs` by key and the sentinel, each with what `load` needs
(here a file and the shapes of its inputs) and the fewest calls of a sample, the seed of orders, and how long a sample
is. A process that prepares graphs in another way serves with a `load` of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import random
import struct
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from nas.profiling.device.loaders import loader_of
from nas.profiling.device.parent import die_with
from nas.profiling.device.sessions import Session

Load = Callable[[Mapping[str, Any]], Session]

SENTINEL_CALLS = 12  # behind a network it takes about ten calls to be as quick as it gets
WARM_UP_CALLS = 3


def main() -> None:
    """Serve one job; see the module."""
    serve(_load_of)


def serve(load_of: Callable[[Mapping[str, Any]], Load]) -> None:
    """Serve one job.

    Args:
        load_of: gives what loads a graph of this job.
    """
    answer = answers()
    go_first()
    job = json.loads(sys.stdin.readline())
    with shared_number(job["busy"]) as busy:
        timer = Timer(load_of(job), job, busy)
        answer({"failures": timer.prepare()})
        for line in sys.stdin:
            answer({"samples": timer.round(json.loads(line))})


def _load_of(job: Mapping[str, Any]) -> Load:
    return functools.partial(_load, job)


def _load(job: Mapping[str, Any], item: Mapping[str, Any]) -> Session:
    session: Session = loader_of(job["runtime"]).load(
        Path(item["file"]), item["shapes"], job["threads"], job["precision"]
    )
    return session


def answers() -> Callable[[dict[str, Any]], None]:
    """What writes a line to standard output; from now on, whatever else is printed goes to standard error.

    This process ends with the one that asks, also where a runtime hangs and the end of its input is not seen.
    """
    die_with(os.getppid())
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
    """The small file that says which graph is in work, by its number in this process."""
    with mmap.mmap(file, 8) as memory:
        yield memory


def note(busy: mmap.mmap, number: int) -> None:
    """Say which graph is in work."""
    struct.pack_into("q", busy, 0, number)


class Timer:
    """The graphs of a job, loaded, and the sentinel.

    Args:
        load: loads one of them.
        job: see the module.
        busy: where to note the number of the graph in work.
    """

    def __init__(self, load: Load, job: Mapping[str, Any], busy: mmap.mmap) -> None:
        self.load, self.job, self.busy = load, job, busy
        self.random = random.Random(job["seed"])
        self.sessions: dict[str, Session] = {}
        self.calls: dict[str, int] = {}
        self.numbers = {key: number for number, key in enumerate(job["graphs"])}
        self.sentinel = load(job["sentinel"])

    def prepare(self) -> dict[str, str]:
        """Load and warm every graph; why those that cannot be loaded fail, by key."""
        failures = {}
        for key, item in self.job["graphs"].items():
            note(self.busy, self.numbers[key])
            try:
                session = self.load(item)
                us = min(1e6 * session.timed_run() for _ in range(WARM_UP_CALLS))
            except Exception as error:  # whatever a runtime raises belongs to this graph alone
                failures[key] = f"{type(error).__name__}: {error}"
                continue
            self.sessions[key] = session
            self.calls[key] = min(max(round(self.job["sample_us"] / us), item["least"]), self.job["most"])
        return failures

    def round(self, keys: list[str]) -> dict[str, list[float]]:
        """A sample of each graph, in random order: the slower sentinel of before and after, then the calls; in us."""
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
