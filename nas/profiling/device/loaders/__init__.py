"""Runtimes on a board: one file each, named like its runtime.

It says what pip calls the runtime and what Python imports, and `load`s a file with a number of threads and a precision.
The backend of that name uses it, too. A bundle for a runtime from outside the package carries its backend's file, which
then lies here.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

from nas.core.errors import MeasureError
from nas.profiling.device.sessions import Session


class _OfBackend:
    """A loader made of a backend."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.DISTRIBUTION = backend.distribution
        self.MODULE = backend.import_name or backend.distribution

    def load(self, path: Path, shapes: Sequence[Sequence[int]], threads: int, precision: str) -> Session:
        session: Session = self.backend(threads, precision).load(path, shapes)
        return session


def loader_of(runtime: str) -> Any:
    """The module of a runtime, or what has its names."""
    module = importlib.import_module(f"{__name__}.{runtime}")
    backend = getattr(module, "BACKEND", None)
    return module if backend is None else _OfBackend(backend)


def version_of(runtime: str) -> str:
    """The version of an installed runtime, as pip knows it, or as it says itself: a board's own build.

    Raises:
        MeasureError: where it is not installed, with what installs it.
    """
    loader = loader_of(runtime)
    try:
        return metadata.version(loader.DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pass
    try:
        return str(importlib.import_module(loader.MODULE).__version__)
    except (ImportError, AttributeError) as error:
        install = f"pip install {loader.DISTRIBUTION}"
        raise MeasureError(f"{loader.DISTRIBUTION} is not installed for {sys.executable}: {install}") from error
