"""ONNX Runtime on the CPU, one arena, sequential execution, all graph optimizations."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas.export import example_inputs, write_onnx
from nas.ops import Shape
from nas.profiling.backends import Backend, Session


class OnnxSession(Session):
    """An ONNX Runtime session and its feeds."""

    def __init__(self, session: Any, feeds: dict[str, Any]) -> None:
        self.session, self.feeds = session, feeds

    def run(self) -> None:
        self.session.run(None, self.feeds)


class OnnxRuntime(Backend):
    """ONNX Runtime's CPU execution provider."""

    name = "onnxruntime"
    distribution = "onnxruntime"
    extra = "onnxruntime"

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="nas-onnx-") as folder:
            file = Path(folder) / "model.onnx"
            write_onnx(module, shapes, file)
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feeds = {f"input{number}": tensor.numpy() for number, tensor in enumerate(example_inputs(shapes))}
        used = {entry.name for entry in session.get_inputs()}
        return OnnxSession(session, {name: array for name, array in feeds.items() if name in used})


BACKEND = OnnxRuntime
