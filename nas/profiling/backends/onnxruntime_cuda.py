"""ONNX Runtime on an NVIDIA GPU: its CUDA execution provider, inputs and outputs bound to GPU memory, TF32 off."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.networks.export import write_onnx
from nas.profiling.backends import FileBackend, Session
from nas.profiling.device.loaders.onnxruntime import feeds_of

if TYPE_CHECKING:
    from torch import nn

    from nas.core.ops import Shape

PROVIDER = "CUDAExecutionProvider"


class BoundSession(Session):
    """A session with bound inputs and outputs; a run ends when the GPU is done."""

    def __init__(self, session: Any, binding: Any) -> None:
        self.session, self.binding = session, binding

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()

    def outputs(self) -> tuple[Any, ...]:
        self.run()
        return tuple(array.astype("float32") for array in self.binding.copy_outputs_to_cpu())


class OnnxRuntimeCuda(FileBackend):
    """ONNX Runtime's CUDA execution provider on device 0; for fp16, weights, inputs and outputs are fp16 as well."""

    name = "onnxruntime_cuda"
    distribution = "onnxruntime-gpu"
    import_name = "onnxruntime"
    extra = "onnxruntime-gpu"
    untested = "an NVIDIA GPU"
    memory = None
    precisions = ("fp32", "fp16")

    @classmethod
    def require(cls) -> None:
        if not _has_driver():
            raise MeasureError(
                f"runtime {cls.name!r} needs {cls.untested}, and CUDA's driver finds none: check with nvidia-smi"
            )
        try:  # the CPU package imports under the same name
            importlib.metadata.version(cls.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise cls.not_installed() from None

    @classmethod
    def device_name(cls) -> str | None:
        from nas.profiling.backends.torch_cuda import gpu_name

        return gpu_name()

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        import torch

        write_onnx(module, shapes, path, torch.float16 if self.precision == "fp16" else None)

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        providers = [(PROVIDER, {"device_id": 0, "use_tf32": 0})]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        if PROVIDER not in session.get_providers():  # it would run on the CPU and say nothing
            raise MeasureError(
                f"runtime {self.name!r}: ONNX Runtime could not load {PROVIDER}; it needs the CUDA and cuDNN libraries "
                "that its version was built for"
            )
        binding = session.io_binding()
        used = {entry.name for entry in session.get_inputs()}
        for name, array in feeds_of(shapes, used).items():
            value = array.astype("float16" if self.precision == "fp16" else "float32")
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
        for entry in session.get_outputs():
            binding.bind_output(entry.name, "cuda")
        return BoundSession(session, binding)


def _has_driver() -> bool:
    """Whether CUDA's driver is there and finds a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


BACKEND = OnnxRuntimeCuda
