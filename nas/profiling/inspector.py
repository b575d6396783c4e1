"""The process that runs whole networks with a runtime's node profiler; it loads files, so it does without PyTorch.

    python -m nas.profiling.inspector

It speaks as `nas.profiling.worker` does: first the job, then a network's file a line, answered with the times of its
nodes in every run that counts, or with the reason why there are none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nas.profiling.backends import FileBackend, Session, load_backend
from nas.profiling.device.worker import SENTINEL_CALLS, answers, go_first, note, shared_number


def main() -> None:
    """Serve one job; see the module."""
    answer = answers()
    go_first()
    job = json.loads(sys.stdin.readline())
    backend = load_backend(job["runtime"])(job["threads"], job["precision"], job["variant"])
    assert isinstance(backend, FileBackend)
    sentinel = backend.load(Path(job["sentinel"]["file"]), job["sentinel"]["shapes"])
    with shared_number(job["busy"]) as busy:
        answer({"ready": True})
        for line in sys.stdin:
            note(busy, 0)
            answer(inspect(backend, sentinel, json.loads(line)))


def inspect(backend: FileBackend, sentinel: Session, item: dict[str, Any]) -> dict[str, Any]:
    """The slower sentinel of before and after, in microseconds, and the nodes of every run that counts."""
    try:
        session = backend.load_profiled(Path(item["file"]), item["shapes"])
        session.run()
        before = _us(sentinel)
        for _ in range(item["runs"]):
            session.run()
        sentinels = (before, _us(sentinel))
        runs = session.nodes()
    except Exception as error:  # whatever a runtime raises belongs to this network alone
        return {"failure": f"{type(error).__name__}: {error}"}
    return {"sentinel_us": max(sentinels), "runs": runs if len(runs) == 1 else runs[item["warm_up"] :]}


def _us(sentinel: Session) -> float:
    return round(1e6 * min(sentinel.timed_run() for _ in range(SENTINEL_CALLS)), 2)


if __name__ == "__main__":
    main()
