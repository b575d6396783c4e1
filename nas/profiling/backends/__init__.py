"""Runtimes: one file a backend, named like its runtime and ending in `BACKEND`; presence is registration.

A backend prepares a model into a session and runs it once; warm-up, repeats, statistics and table headers belong to the
profiler, once for all. A backend imports its runtime when it is first used, not when its file is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import nn

from nas.errors import InputError, MeasureError, suggest
from nas.ops import Shape


class Session(ABC):
    """A model, loaded and ready, with fixed random inputs at batch 1."""

    @abstractmethod
    def run(self) -> None:
        """Run one inference."""

    def timed_run(self) -> float:
        """Run one inference; how long it took, in seconds."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


class Backend(ABC):
    """A runtime with its settings.

    Args:
        threads: threads to use inside one inference, set in the runtime itself.
        precision: of weights and activations.
        variant: one of `variants`; None for the first.

    Raises:
        InputError: for a precision or variant that the backend does not know.
        MeasureError: where the runtime is not installed, naming the extra that installs it.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]  # what carries its version
    extra: ClassVar[str | None] = None  # of this package, installs it
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    variants: ClassVar[tuple[str, ...]] = ("default",)  # ways to run; a profile measures networks in all, keeps one

    def __init__(self, threads: int = 1, precision: str = "fp32", variant: str | None = None) -> None:
        if threads < 1:
            raise InputError(f"threads: expected at least 1, got {threads}")
        if precision not in self.precisions:
            raise InputError(f"{self.name}: {suggest('precision', precision, self.precisions)}")
        if variant is not None and variant not in self.variants:
            raise InputError(f"{self.name}: {suggest('variant', variant, self.variants)}")
        self.require()
        self.threads, self.precision, self.variant = threads, precision, variant or self.variants[0]

    @classmethod
    def require(cls) -> None:
        """Raise where the runtime is not installed."""
        if importlib.util.find_spec(cls.distribution) is None:
            install = f"pip install 'millinas[{cls.extra}]'" if cls.extra else f"pip install {cls.distribution}"
            raise MeasureError(f"runtime {cls.name!r} needs {cls.distribution}, which is not installed: {install}")

    @classmethod
    def version(cls) -> str:
        """The version of the runtime, without loading it."""
        cls.require()
        return importlib.metadata.version(cls.distribution)

    @abstractmethod
    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        """Load a module in deployed form, with one input tensor per shape."""


class FileBackend(Backend):
    """A backend that loads files, so that the processes of a profile can share what one has converted."""

    @abstractmethod
    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        """Write a module in deployed form to `path`, with one input tensor per shape."""

    @abstractmethod
    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        """Load what `convert` wrote; the file may go afterwards."""

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        with tempfile.TemporaryDirectory(prefix="nas-model-") as folder:
            path = Path(folder) / "model"
            self.convert(module, shapes, path)
            return self.load(path, shapes)


def runtimes() -> list[str]:
    """Names of all runtimes: one for each file here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_backend(name: str) -> type[Backend]:
    """The backend class of a runtime.

    Raises:
        InputError: for an unknown runtime, naming the closest ones.
    """
    if name not in runtimes():
        raise InputError(suggest("runtime", name, runtimes()))
    backend: type[Backend] = importlib.import_module(f"{__name__}.{name}").BACKEND
    return backend
