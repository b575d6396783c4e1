"""The process of the profiler that times: `nas.profiling.device.worker`, for every backend.

    python -m nas.profiling.worker

Where the runtime loads files, they are there already, and this process does without PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.profiling.backends import Backend, FileBackend, Session, load_backend
from nas.profiling.device.worker import Load, serve

WEIGHTS_SEED = 0


def main() -> None:
    """Serve one job; see the module."""
    serve(load_of)


def load_of(job: Mapping[str, Any]) -> Load:
    """What loads or builds a graph of a job."""
    backend = load_backend(job["runtime"])(job["threads"], job["precision"], job["variant"])
    if not isinstance(backend, FileBackend):
        import_blocks(job["spaces"], job["threads"])
    return functools.partial(load, backend)


def load(backend: Backend, item: Mapping[str, Any]) -> Session:
    """A session of a graph, from its file or built of its blocks."""
    if isinstance(backend, FileBackend):
        return backend.load(Path(item["file"]), item["shapes"])
    from nas.profiling.probes import Probe

    probe = Probe.from_data(item["probe"])
    return backend.prepare(probe.module(WEIGHTS_SEED), probe.shapes())


def import_blocks(spaces: Sequence[str], threads: int) -> None:
    """Import PyTorch and the blocks of spaces."""
    import torch

    import search_spaces

    torch.set_num_threads(threads)
    for name in spaces:
        search_spaces.load(name)  # its blocks become known


if __name__ == "__main__":
    main()
