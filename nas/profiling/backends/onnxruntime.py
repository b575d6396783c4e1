"""ONNX Runtime on the CPU, one arena, sequential execution, all graph optimizations.

int8 is static post-training quantization to QDQ nodes: unsigned activations with ranges from a few seeded normal
inputs, signed weights per output channel. Which ops it reaches is ONNX Runtime's default.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.files import scratch
from nas.networks.export import write_onnx
from nas.profiling.backends import FileBackend, ProfiledSession, Session
from nas.profiling.device.loaders.onnxruntime import OnnxSession, feeds_of, load, opened, options_of

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from torch import nn

    from nas.core.ops import Shape

CALIBRATION_INPUTS = 8


class ProfiledOnnxSession(OnnxSession, ProfiledSession):
    """One that writes an event for each kernel and each run to a file; `folder` holds it."""

    def __init__(self, session: Any, feeds: dict[str, Any], folder: TemporaryDirectory[str]) -> None:
        super().__init__(session, feeds)
        self.folder = folder

    def nodes(self) -> list[list[tuple[str, float]]]:
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        self.folder.cleanup()
        kernels = sorted((e for e in events if e.get("cat") == "Node"), key=lambda e: e["ts"])
        kernels = [event for event in kernels if event["name"].endswith("_kernel_time")]
        return [
            [
                (kernel["name"].removesuffix("_kernel_time"), float(kernel["dur"]))
                for kernel in kernels
                if run["ts"] <= kernel["ts"] <= run["ts"] + run["dur"]
            ]
            for run in sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])
        ]


class OnnxRuntime(FileBackend):
    """ONNX Runtime's CPU execution provider."""

    name = "onnxruntime"
    suffix = ".onnx"
    distribution = "onnxruntime"
    extra = "onnxruntime"
    precisions = ("fp32", "int8")
    profiles_nodes = True
    method = "in-situ"

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        if self.precision == "int8":
            write_quantized_onnx(module, shapes, path)
        else:
            write_onnx(module, shapes, path)

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        return load(path, shapes, self.threads, self.precision)

    def load_profiled(self, path: Path, shapes: Sequence[Shape]) -> ProfiledSession:
        folder = scratch("nodes")
        options = options_of(self.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder.name) / "nodes")
        return ProfiledOnnxSession(*opened(path, shapes, options), folder)


def write_quantized_onnx(module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
    """Write a module in deployed form to `path` as int8, calibrated with normal inputs of seeds 1, 2, ..."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, used: set[str]) -> None:
            self.inputs: Iterator[dict[str, Any]] = (
                feeds_of(shapes, used, seed) for seed in range(1, CALIBRATION_INPUTS + 1)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    with scratch("int8") as folder:
        plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
        write_onnx(module, shapes, plain)
        used = {entry.name for entry in onnx.load(str(plain)).graph.input}
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)  # shapes are fixed: nothing symbolic
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it warns of each op that it leaves as it is
        try:
            quantize_static(
                str(ready),
                str(path),
                Reader(used),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.root.setLevel(level)


BACKEND = OnnxRuntime
