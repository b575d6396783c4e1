"""Peak memory of whole networks: measured, each in a process of its own, and predicted from the trace.

    python -m nas.profiling.memory

is the process that measures: it speaks as `nas.profiling.worker` does, first the job, then a network a line, answered
with its bytes. Each network is loaded in a fork of it, so that none counts what another left, and what takes long to
import, PyTorch where the runtime loads no files, is imported once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.profiling.backends import Backend, FileBackend, Session, load_backend
from nas.profiling.device.worker import answers, note, shared_number
from nas.profiling.worker import WEIGHTS_SEED, import_blocks

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.profiling.bench import Bench, Progress
    from nas.profiling.process import RuntimeConfig

RUNS = 3
MOST_PROBLEMS = 2  # networks whose memory cannot be counted, from the first on, before the others are not tried
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(config: RuntimeConfig, arch: Arch) -> int:
    """The most memory that loading a network and running it adds to a process, in bytes.

    On the CPU it is resident memory, beyond what a process has that has imported the runtime and run a small model.
    Whatever the runtime has at its worst moment counts: the file while it loads it, packed weights, workspaces, code it
    had not touched before. Where the runtime loads files, another process converts the network; otherwise the
    PyTorch module is there before, and the copy that the runtime makes of it counts. On a GPU it is the most that
    PyTorch's allocator has given out at once.

    Raises:
        MeasureError: where the runtime fails, or nothing counts its memory here.
    """
    from nas.profiling.bench import Bench
    from nas.profiling.device.journal import Log
    from nas.profiling.device.timing import Settings

    log = Log()
    with Bench(config, Settings(), log, spaces=(arch.family,)) as bench:
        if problems := weigh(bench, [arch]):
            raise MeasureError(f"runtime {config.runtime!r}: {problems[0]}")
    (found,) = log.peaks.values()
    return found


def weigh(
    bench: Bench, archs: Sequence[Arch], progress: Progress | None = None, until: float = math.inf
) -> tuple[str, ...]:
    """Measure the peak memory of the networks that the bench's log lacks; what it still lacks then, and why.

    Args:
        bench: its log receives the bytes.
        archs: networks of its spaces.
        progress: called with work done, total work, seconds left, and what is going on.
        until: when to stop, by `time.monotonic()`.
    """
    from nas.profiling.device.process import WorkerDeathError
    from nas.profiling.probes import Probe

    probes = [Probe(arch=arch) for arch in archs]
    probes = [probe for probe in probes if probe.key not in bench.log.peaks]
    if problem := uncounted(load_backend(bench.config.runtime)):
        return (problem,) if probes else ()
    count, problems = len(probes), list[str]()
    weigher = None
    try:
        while probes:
            probe, done = probes[0], count - len(probes)
            if progress is not None:
                progress(done, count, None, f"memory of network {done + 1} of {count}")
            if time.monotonic() > until:
                return (*problems, f"memory of {len(probes)} networks not measured: the time is up")
            try:
                files = bench.convert([probe])
                if probe.key in bench.failures:
                    raise MeasureError(bench.failures[probe.key])
                weigher = weigher or bench.weigher(files)
                bench.log.add_peak(probe.key, weigher.weigh(probe, files))
            except WorkerDeathError as death:
                if weigher is not None:
                    weigher.stop()
                weigher = None
                bench.bury(death)
                if death.key not in bench.failures:
                    continue  # once more
                problems.append(f"memory of {probe.key} not measured: {death}")
            except MeasureError as error:
                problems.append(f"memory of {probe.key} not measured: {error}")
            probes = probes[1:]
            if done + 1 == len(problems) == MOST_PROBLEMS and probes:
                return (*problems, f"memory of {len(probes)} further networks not tried")
    finally:
        if weigher is not None:
            weigher.stop()
    return tuple(problems)


def uncounted(backend: type[Backend]) -> str:
    """Why nothing counts the memory of a runtime here; "" where something does."""
    if backend.memory is None:
        return f"nothing counts the memory that {backend.name} takes on its device"
    if backend.memory == "process" and not CLEAR_REFS.exists():
        return f"peak memory is counted by Linux's {CLEAR_REFS}, which is not here"
    return ""


def main() -> None:
    """Serve one job; see the module."""
    answer = answers()
    job = json.loads(sys.stdin.readline())
    if not issubclass(load_backend(job["runtime"]), FileBackend):
        import_blocks(job["spaces"], job["threads"])
    with shared_number(job["busy"]) as busy:
        answer({"ready": True})
        for line in sys.stdin:
            note(busy, 0)
            answer(_in_a_fork(job, json.loads(line)))


def _in_a_fork(job: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    """Weigh a network in a copy of this process, which has imported a lot and run nothing: the next finds it as new."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(_weigh(job, item)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    death = {"death": f"the process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"}
    answer: dict[str, Any] = json.loads(said) if said else death
    return answer


def _weigh(job: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    try:
        backend = load_backend(job["runtime"])(job["threads"], job["precision"], job["variant"])
        count = _cuda_bytes if backend.memory == "torch.cuda" else _resident_bytes
        _loader(backend, job["sentinel"])().run()
        return {"bytes": count(_loader(backend, item))}
    except Exception as error:  # whatever a runtime raises belongs to this network alone
        return {"failure": f"{type(error).__name__}: {error}"}


def _loader(backend: Backend, item: dict[str, Any]) -> Callable[[], Session]:
    """What loads a graph; a module that it is made of is there before."""
    if isinstance(backend, FileBackend):
        return functools.partial(backend.load, Path(item["file"]), item["shapes"])
    from nas.profiling.probes import Probe

    probe = Probe.from_data(item["probe"])
    return functools.partial(backend.prepare, probe.module(WEIGHTS_SEED), probe.shapes())


def _resident_bytes(make: Callable[[], Session]) -> int:
    """Peak resident memory while `make` loads a session and it runs, beyond what is resident before."""
    with contextlib.suppress(OSError, AttributeError):  # of glibc: what is free goes back, so it is not taken again
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5", encoding="ascii")  # the peak starts again from here
    before = _status("VmRSS")
    session = make()
    for _ in range(RUNS):
        session.run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise MeasureError(f"{STATUS} has no field {field}")
    return 1024 * int(found[1])


def _cuda_bytes(make: Callable[[], Session]) -> int:
    import torch

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    session = make()
    for _ in range(RUNS):
        session.run()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
