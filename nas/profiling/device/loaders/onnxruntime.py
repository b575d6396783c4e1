"""An ONNX file in ONNX Runtime on the CPU: one arena, sequential execution, all graph optimizations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection, Sequence

from nas.profiling.device.sessions import Session, example_arrays

DISTRIBUTION, MODULE = "onnxruntime", "onnxruntime"


class OnnxSession(Session):
    """An ONNX Runtime session and its feeds."""

    def __init__(self, session: Any, feeds: dict[str, Any]) -> None:
        self.session, self.feeds = session, feeds

    def run(self) -> None:
        self.session.run(None, self.feeds)

    def outputs(self) -> tuple[Any, ...]:
        return tuple(self.session.run(None, self.feeds))

    def feed(self, arrays: Sequence[Any]) -> None:
        self.feeds = named(arrays, self.feeds)


def options_of(threads: int) -> Any:
    """The options of all sessions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def opened(path: Path, shapes: Sequence[Sequence[int]], options: Any) -> tuple[Any, dict[str, Any]]:
    """A session of ONNX Runtime and its feeds."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, feeds_of(shapes, [entry.name for entry in session.get_inputs()])


def feeds_of(shapes: Sequence[Sequence[int]], used: Collection[str], seed: int = 0) -> dict[str, Any]:
    """Example inputs by name, those that the exporter has not removed as unused."""
    return named(example_arrays(shapes, seed), used)


def named(arrays: Sequence[Any], used: Collection[str]) -> dict[str, Any]:
    """Inputs by name, those that the exporter has not removed as unused."""
    every = {f"input{number}": array for number, array in enumerate(arrays)}
    return {name: array for name, array in every.items() if name in used}


def load(path: Path, shapes: Sequence[Sequence[int]], threads: int, precision: str) -> Session:
    """Load a file, whose numbers are of the precision."""
    return OnnxSession(*opened(path, shapes, options_of(threads)))
