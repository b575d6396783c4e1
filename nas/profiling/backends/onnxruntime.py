"""ONNX Runtime on the CPU, one arena, sequential execution, all graph optimizations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas.export import example_inputs, write_onnx
from nas.ops import Shape
from nas.profiling.backends import FileBackend, Session


class OnnxSession(Session):
    """An ONNX Runtime session and its feeds."""

    def __init__(self, session: Any, feeds: dict[str, Any]) -> None:
        self.session, self.feeds = session, feeds

    def run(self) -> None:
        self.session.run(None, self.feeds)


class OnnxRuntime(FileBackend):
    """ONNX Runtime's CPU execution provider."""

    name = "onnxruntime"
    distribution = "onnxruntime"
    extra = "onnxruntime"

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        write_onnx(module, shapes, path)

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {f"input{number}": tensor.numpy() for number, tensor in enumerate(example_inputs(shapes))}
        used = {entry.name for entry in session.get_inputs()}
        return OnnxSession(session, {name: array for name, array in feeds.items() if name in used})


BACKEND = OnnxRuntime
