"""An ONNX file in OpenVINO on the CPU, one stream.

The inference precision is always said, since OpenVINO takes bf16 by itself where the CPU is quick at it; of an int8
file it is that of the part which is not quantized.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Sequence

from nas.profiling.device.loaders.onnxruntime import feeds_of, named
from nas.profiling.device.sessions import Session

DISTRIBUTION, MODULE = "openvino", "openvino"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoSession(Session):
    """An inference request whose input tensors are set."""

    def __init__(self, request: Any, feeds: dict[str, Any]) -> None:
        self.request, self.used = request, tuple(feeds)
        self._set(feeds)

    def run(self) -> None:
        self.request.infer()

    def outputs(self) -> tuple[Any, ...]:
        self.run()
        return tuple(tensor.data.astype("float32") for tensor in self.request.output_tensors)

    def feed(self, arrays: Sequence[Any]) -> None:
        self._set(named(arrays, self.used))

    def _set(self, feeds: dict[str, Any]) -> None:
        import openvino

        for name, array in feeds.items():
            self.request.set_tensor(name, openvino.Tensor(array))


def core() -> Any:
    """OpenVINO, kept from sending usage data: it would, from a fork of what is timed."""
    blocked: Any = sys.modules
    blocked.setdefault("openvino_telemetry", None)
    import openvino

    return openvino.Core()


def opened(
    path: Path, shapes: Sequence[Sequence[int]], threads: int, precision: str, **properties: Any
) -> tuple[Any, dict[str, Any]]:
    """A request and its feeds."""
    openvino = core()
    properties.update(
        INFERENCE_PRECISION_HINT=HINTS[precision],
        INFERENCE_NUM_THREADS=threads,
        NUM_STREAMS=1,
        ENABLE_CPU_PINNING=False,
    )
    compiled = openvino.compile_model(openvino.read_model(str(path)), "CPU", properties)
    used = {name for entry in compiled.inputs for name in entry.names}
    return compiled.create_infer_request(), feeds_of(shapes, used)


def load(path: Path, shapes: Sequence[Sequence[int]], threads: int, precision: str) -> Session:
    """Load a file."""
    return OpenVinoSession(*opened(path, shapes, threads, precision))
