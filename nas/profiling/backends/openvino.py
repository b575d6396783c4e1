"""OpenVINO on the CPU, one stream, reading the same ONNX files as ONNX Runtime.

The inference precision is always said, since OpenVINO takes bf16 by itself where the CPU is quick at it. int8 is the
QDQ file of ONNX Runtime's static quantization, the rest of its graph in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.networks.export import write_onnx
from nas.profiling.backends import FileBackend, ProfiledSession, Session
from nas.profiling.backends.onnxruntime import OnnxRuntime, onnx_kinds, write_quantized_onnx
from nas.profiling.device.loaders.openvino import HINTS, OpenVinoSession, core, load, opened

if TYPE_CHECKING:
    from torch import nn

    from nas.core.ops import Shape


class ProfiledOpenVinoSession(OpenVinoSession, ProfiledSession):
    """One with counters on, which hold a mean over all runs since it was loaded, in whole microseconds."""

    def __init__(self, request: Any, feeds: dict[str, Any]) -> None:
        super().__init__(request, feeds)
        self.count = 0

    def run(self) -> None:
        super().run()
        self.count += 1
        if self.count == 1:
            self.first = self._means()

    def nodes(self) -> list[list[tuple[str, float]]]:
        """One list: the means over all runs but the first, which is still cold.

        Raises:
            MeasureError: before the second run.
        """
        if self.count < 2:
            raise MeasureError(f"OpenVINO: node times need at least 2 runs, got {self.count}")
        means = (
            (self.count * last - first) / (self.count - 1)
            for last, first in zip(self._means(), self.first, strict=True)
        )
        names = (node.node_name for node in self.request.profiling_info)
        return [[(name, us) for name, us in zip(names, means, strict=True) if us > 0]]

    def _means(self) -> list[float]:
        return [1e6 * node.real_time.total_seconds() for node in self.request.profiling_info]


class OpenVino(FileBackend):
    """OpenVINO's CPU plug-in."""

    name = "openvino"
    suffix = ".onnx"
    distribution = "openvino"
    extra = "openvino"
    precisions = tuple(HINTS)
    profiles_nodes = True
    method = "in-situ"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.precision == "int8":
            OnnxRuntime.require()

    def require_machine(self) -> None:
        if self.precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MeasureError(f"runtime {self.name!r}: this CPU has no bf16 instructions; use fp32 or int8")

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        if self.precision == "int8":
            write_quantized_onnx(module, shapes, path, self.calibration)
        else:
            write_onnx(module, shapes, path)

    def kinds_quantized(self, module: nn.Module, shapes: Sequence[Shape]) -> tuple[str, ...]:
        return onnx_kinds(module, shapes)

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        self.require_machine()
        return load(path, shapes, self.threads, self.precision)

    def load_profiled(self, path: Path, shapes: Sequence[Shape]) -> ProfiledSession:
        self.require_machine()
        return ProfiledOpenVinoSession(*opened(path, shapes, self.threads, self.precision, PERF_COUNT=True))


BACKEND = OpenVino
