"""What all tests share: seeded randomness and one thread."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# what blocks cost is remembered here for all tests and their processes, and nothing in the cache of the user
_cache = tempfile.TemporaryDirectory(prefix="nas-tests-cache-")
os.environ["NAS_CACHE"] = _cache.name


@pytest.fixture
def rng() -> random.Random:
    """A fresh, seeded source of randomness."""
    return random.Random(0)


@pytest.fixture(autouse=True)
def child_signals() -> Iterator[None]:
    """PyTorch's data loaders leave a handler of SIGCHLD behind; with several runtimes loaded, which change the stack of
    signals, the end of the next child process would crash the tests.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small but real search: profiled on the fake runtime, trained on digits, reported."""
    from nas.search.request import Request
    from nas.search.run import run_search

    folder = tmp_path_factory.mktemp("runs") / "small"
    request = Request(
        name="small",
        out=str(folder),
        space="efficientformer-32",
        runtime="fake",
        budgets=("latency_ms<=p40",),
        epochs=1,
        trials=4,
        workers=2,
        finalists=2,
        repeats=1,
        final_epochs=1,
        device="cpu",
    )
    return run_search(request, log=lambda line: None)
