"""The process that converts probes to files, for runtimes that load files; a converter that crashes costs one probe.

    python -m nas.profiling.converter

It speaks as `nas.profiling.worker` does: first the job, then probes by key with the paths to write, answered with the
reasons of those that failed. It waits while others measure, so PyTorch is imported once for a whole profile, and the
processes that time do without.
"""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path
from typing import Any

import torch

import search_spaces
from nas.core.files import whole
from nas.profiling.backends import FileBackend, load_backend
from nas.profiling.cache import seal
from nas.profiling.device.worker import answers, note, shared_number
from nas.profiling.probes import Probe
from nas.profiling.worker import WEIGHTS_SEED


def main() -> None:
    """Serve one job; see the module."""
    answer = answers()
    job = json.loads(sys.stdin.readline())
    for name in job["spaces"]:
        search_spaces.load(name)  # its blocks become known
    torch.set_num_threads(1)
    backend = load_backend(job["runtime"])(job["threads"], job["precision"], job["variant"])
    assert isinstance(backend, FileBackend)
    with shared_number(job["busy"]) as busy:
        answer({"ready": True})
        for line in sys.stdin:
            answer({"failures": convert(backend, json.loads(line), busy)})


def convert(backend: FileBackend, probes: dict[str, dict[str, Any]], busy: mmap.mmap) -> dict[str, str]:
    """Write a file for every probe; why those without one failed, by key."""
    failures = {}
    for number, (key, item) in enumerate(probes.items()):
        note(busy, number)
        path = Path(item["file"])
        try:
            probe = Probe.from_data(item["probe"])
            with whole(path, sync=False) as begun:  # its seal tells one that a power cut tore
                backend.convert(probe.module(WEIGHTS_SEED), probe.shapes(), begun)
            seal(path)
        except Exception as error:  # whatever a converter raises belongs to this probe alone
            failures[key] = f"{type(error).__name__}: {error}"
    return failures


if __name__ == "__main__":
    main()
