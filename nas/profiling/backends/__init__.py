"""Runtimes: one file a backend, named like its runtime and ending in `BACKEND`; presence is registration.

A backend prepares a model into a session and runs it once; warm-up, repeats, statistics and table headers belong to the
profiler, once for all. A backend imports its runtime when it is first used, not when its file is.

Bundles carry this file to boards, for the file of a runtime from outside the package, so it runs on Python 3.8, too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nas.core.errors import InputError, MeasureError, suggest
from nas.core.files import scratch
from nas.profiling.device.sessions import Session, example_arrays

if TYPE_CHECKING:  # a process that only loads files and runs them does without PyTorch
    from torch import nn

    from nas.core.ops import Shape


__all__ = ["Backend", "Calibration", "FileBackend", "ProfiledSession", "Session", "load_backend", "runtimes"]

RANDOM_INPUTS = 8


@dataclass(frozen=True)
class Calibration:
    """What a quantization to int8 rests on.

    Attributes:
        inputs: from which it takes the ranges of activations, fp32 arrays in the order of the module's inputs; None for
            a few seeded normal ones, which do for latency and for nothing else.
        kept: kinds of ops that stay in fp32, of those that the backend lists in `kinds_quantized`.
    """

    inputs: Any = None  # Sequence[Sequence[ndarray]]: this file runs on boards
    kept: tuple[str, ...] = ()

    def samples(self, shapes: Sequence[Sequence[int]]) -> Sequence[Sequence[Any]]:
        """The inputs, for a module of these shapes."""
        if self.inputs is not None:
            samples: Sequence[Sequence[Any]] = self.inputs
            return samples
        return [example_arrays(shapes, seed) for seed in range(1, RANDOM_INPUTS + 1)]


class ProfiledSession(Session):
    """A session that also notes the time of each node; slower than one that does not."""

    @abstractmethod
    def nodes(self) -> list[list[tuple[str, float]]]:
        """Node names and microseconds of every run so far, one inner list a run, each in order of execution.

        A runtime that only keeps means gives one list, of the means over all runs but the first: make at least two.
        It ends the profile: ask once, after the last run. A name is the runtime's: it begins with the path of the
        module in the exported model where the runtime keeps it, and a fused node has the name of one of its parts.
        Nodes that were not executed are left out.
        """


class Backend(ABC):
    """A runtime with its settings.

    Args:
        threads: threads to use inside one inference, set in the runtime itself.
        precision: of weights and activations.
        variant: one of `variants`; None for the first.
        calibration: for int8; None for the random one.

    Raises:
        InputError: for a precision or variant that the backend does not know.
        MeasureError: where the runtime is not installed, naming the extra that installs it, or its hardware is missing.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]  # what carries its version
    import_name: ClassVar[str | None] = None  # where it is not the distribution's
    untested: ClassVar[str | None] = None  # the hardware it is for, where we never had it to run this backend on
    memory: ClassVar[str | None] = "process"  # where its memory is counted: also "torch.cuda", None for nowhere
    extra: ClassVar[str | None] = None  # of this package, installs it
    method: ClassVar[str] = "chains"  # how `--method auto` times rows: what validated better
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    variants: ClassVar[tuple[str, ...]] = ("default",)  # ways to run; a profile measures networks in all, keeps one

    def __init__(
        self,
        threads: int = 1,
        precision: str = "fp32",
        variant: str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if threads < 1:
            raise InputError(f"threads: expected at least 1, got {threads}")
        if precision not in self.precisions:
            raise InputError(f"{self.name}: {suggest('precision', precision, self.precisions)}")
        if variant is not None and variant not in self.variants:
            raise InputError(f"{self.name}: {suggest('variant', variant, self.variants)}")
        self.require()
        self.threads, self.precision, self.variant = threads, precision, variant or self.variants[0]
        self.calibration = calibration or Calibration()

    @classmethod
    def require(cls) -> None:
        """Raise where the runtime cannot run: it is not installed, or this machine lacks what it needs."""
        if importlib.util.find_spec(cls.import_name or cls.distribution) is None:
            raise cls.not_installed()

    def require_machine(self) -> None:
        """Raise where this machine cannot run the precision, though it can convert models for others that can.

        Raises:
            MeasureError: naming what it lacks.
        """
        return

    @classmethod
    def not_installed(cls) -> MeasureError:
        """The error that says how to install the runtime."""
        install = f"pip install 'millinas[{cls.extra}]'" if cls.extra else f"pip install {cls.distribution}"
        return MeasureError(f"runtime {cls.name!r} needs {cls.distribution}, which is not installed: {install}")

    @classmethod
    def version(cls) -> str:
        """The version of the runtime, without loading it where pip knows it: not from another distribution, such as
        onnxruntime-gpu, or a build of one's own.
        """
        cls.require()
        try:
            return importlib.metadata.version(cls.distribution)
        except importlib.metadata.PackageNotFoundError:
            pass
        try:
            return str(importlib.import_module(cls.import_name or cls.distribution).__version__)
        except (ImportError, AttributeError) as error:
            raise cls.not_installed() from error

    @classmethod
    def device_name(cls) -> str | None:
        """The model of what runs it where that is not the CPU, such as a GPU's; None for the CPU, or without a GPU."""
        return None

    @classmethod
    def known_variant(cls, variant: str) -> str | None:
        """A variant, or None for one that this backend does not know, such as an imported table's."""
        return variant if variant in cls.variants else None

    @abstractmethod
    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        """Load a module in deployed form, with one input tensor per shape."""


class FileBackend(Backend):
    """A backend that loads files, so that the processes of a profile can share what one has converted."""

    profiles_nodes: ClassVar[bool] = False  # whether `load_profiled` works
    suffix: ClassVar[str] = ""  # of its files, where bundles carry them to boards and `load` works there

    @abstractmethod
    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        """Write a module in deployed form to `path`, with one input tensor per shape."""

    @abstractmethod
    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        """Load what `convert` wrote; the file may go afterwards."""

    def kinds_quantized(self, module: nn.Module, shapes: Sequence[Shape]) -> tuple[str, ...]:
        """The kinds of ops of a module that int8 reaches and that `Calibration.kept` can leave in fp32."""
        return ()

    def load_profiled(self, path: Path, shapes: Sequence[Shape]) -> ProfiledSession:
        """Load what `convert` wrote, to time its nodes.

        Raises:
            MeasureError: where the runtime does not say how long its nodes take.
        """
        raise MeasureError(f"runtime {self.name!r} does not time single nodes")

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        with scratch("model") as folder:
            path = Path(folder) / "model"
            self.convert(module, shapes, path)
            return self.load(path, shapes)


def runtimes() -> list[str]:
    """Names of all runtimes, sorted; see `nas.core.plugins` for where they are found."""
    from nas.core import plugins

    return plugins.names("backends")


def load_backend(name: str) -> type[Backend]:
    """The backend class of a runtime.

    Raises:
        InputError: for an unknown runtime, naming the closest ones, or a file that cannot be loaded, naming it.
    """
    from nas.core import plugins

    backend: type[Backend] = plugins.load("backends", name)
    return backend
