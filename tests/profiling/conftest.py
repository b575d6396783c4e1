"""What the tests of profiling share: a table's path, and workers that start no process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.profiling import LocalWorker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a table will be; its folder does not exist yet."""
    return tmp_path / "device" / "table.csv"


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, which saves the seconds that a worker takes to start."""
    monkeypatch.setattr("nas.profiling.bench.Worker", LocalWorker)
