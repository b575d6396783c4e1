"""What the tests of profiling share: a table's path, and workers that start no process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.profiling import stay_local
from tests.profiling.pico import make_pico


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a table will be; its folder does not exist yet."""
    return tmp_path / "device" / "table.csv"


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, which saves the seconds that a worker takes to start; memory is made up."""
    stay_local(monkeypatch)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted graphs are kept: not among those of the user."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NAS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle of a space of six rows, not run; only for copying."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_pico(tmp_path_factory.mktemp("pico"), patch)
