"""Peak memory of a whole network: measured in a fresh process, and predicted from the trace.

    python -m nas.profiling.memory

is the fresh process: it reads a job, one JSON line, from standard input and writes the bytes to a file. It imports
PyTorch only where the backend does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.profiling.backends import Backend, FileBackend, Session, load_backend

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.profiling.probes import Probe
    from nas.profiling.process import Engine

RUNS = 3
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(engine: Engine, arch: Arch) -> int:
    """The most memory that loading a network and running it adds to a process, in bytes.

    On the CPU it is resident memory, beyond what a process has that has imported the runtime and run a small model.
    Whatever the runtime has at its worst moment counts: the file while it loads it, packed weights, workspaces, code it
    had not touched before. Where the runtime loads files, another process converts the network; otherwise the
    PyTorch module is there before, and the copy that the runtime makes of it counts. On a GPU it is the most that
    PyTorch's allocator has given out at once.

    Raises:
        MeasureError: where the runtime fails, or nothing counts its memory here.
    """
    from nas.profiling.probes import Probe
    from nas.profiling.process import _environment
    from nas.profiling.sentinel import sentinel

    backend = load_backend(engine.runtime)(engine.threads, engine.precision, engine.variant)
    _check(backend)
    probes = {"small": sentinel(), "network": Probe(arch=arch)}
    with tempfile.TemporaryDirectory(prefix="nas-memory-") as name:
        folder = Path(name)
        job = {
            "runtime": engine.runtime,
            "settings": [engine.threads, engine.precision, engine.variant],
            "folder": name,
            "files": _files(engine, probes) if isinstance(backend, FileBackend) else {},
            "shapes": {key: [list(shape) for shape in probe.shapes()] for key, probe in probes.items()},
            "arch": arch.to_json(),
        }
        command = [sys.executable, "-m", "nas.profiling.memory"]
        environment = _environment(engine.threads)
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            reason = f"ended with {done.returncode}: {said[-1] if said else 'it said nothing'}"
            raise MeasureError(f"runtime {engine.runtime!r}: the process that should load the network {reason}")
        return int((folder / "bytes").read_text(encoding="ascii"))


def _files(engine: Engine, probes: dict[str, Probe]) -> dict[str, str]:
    """The converted models by name, from the cache where they are there."""
    from nas.profiling.bench import Bench
    from nas.profiling.protocol import Settings
    from nas.profiling.samples import Log

    network = probes["network"]
    assert network.arch is not None
    with Bench(engine, Settings(), Log(), spaces=(network.arch.family,)) as bench:
        files = bench.convert([network])
    if network.key in bench.failures:
        raise MeasureError(f"runtime {engine.runtime!r}: {bench.failures[network.key]}")
    return {name: str(files[probe.key]) for name, probe in probes.items()}


def main() -> None:
    """Serve one job; see the module."""
    job = json.loads(sys.stdin.readline())
    backend = load_backend(job["runtime"])(*job["settings"])
    folder = Path(job["folder"])
    network = _loader(backend, job) if isinstance(backend, FileBackend) else _preparer(backend, job)
    count = _cuda_bytes if backend.memory == "torch.cuda" else _resident_bytes
    (folder / "bytes").write_text(str(count(network)), encoding="ascii")


def _loader(backend: FileBackend, job: dict[str, Any]) -> Callable[[], Session]:
    files, shapes = job["files"], job["shapes"]
    backend.load(Path(files["small"]), shapes["small"]).run()
    return lambda: backend.load(Path(files["network"]), shapes["network"])


def _preparer(backend: Backend, job: dict[str, Any]) -> Callable[[], Session]:
    from nas.core.arch import Arch
    from nas.profiling.probes import Probe
    from nas.profiling.sentinel import sentinel
    from nas.profiling.worker import WEIGHTS_SEED

    small = sentinel()
    backend.prepare(small.module(WEIGHTS_SEED), small.shapes()).run()
    probe = Probe(arch=Arch.from_json(job["arch"]))
    module = probe.module(WEIGHTS_SEED)
    return lambda: backend.prepare(module, probe.shapes())


def _check(backend: Backend) -> None:
    if backend.memory is None:
        raise MeasureError(f"runtime {backend.name!r}: nothing counts the memory it takes on its device")
    if backend.memory == "process" and not CLEAR_REFS.exists():
        raise MeasureError(f"peak memory is counted by Linux's {CLEAR_REFS}, which is not here")


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
