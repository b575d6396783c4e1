"""PyTorch eager on an NVIDIA GPU, timed by CUDA events. fp32 is full fp32: TF32 is off."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.core.errors import MeasureError
from nas.core.ops import Shape
from nas.networks.export import example_inputs
from nas.profiling.backends import Backend, Session
from nas.profiling.backends.torch import DTYPES, TorchSession

GPU = "an NVIDIA GPU"


def require_gpu(name: str) -> None:
    """Raise where PyTorch cannot use an NVIDIA GPU.

    Raises:
        MeasureError: naming the runtime and what to do.
    """
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise MeasureError(
            f"runtime {name!r} needs {GPU} that PyTorch can use, and torch.cuda.is_available() is False (PyTorch "
            f"{torch.__version__}, {built}): check the driver with nvidia-smi, and install a CUDA build of PyTorch"
        )


def gpu_name() -> str | None:
    """The model of PyTorch's current GPU; None where it can use none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


class CudaSession(Session):
    """What a backend enqueues on PyTorch's current CUDA stream."""

    @abstractmethod
    def launch(self) -> None:
        """Enqueue one inference; it may return before the GPU is done."""

    def run(self) -> None:
        self.launch()
        torch.cuda.synchronize()

    def timed_run(self) -> float:
        """Run one inference; how long the GPU was at it, in seconds, by events before and after."""
        event: Any = torch.cuda.Event  # untyped
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        self.launch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class TorchCudaSession(CudaSession, TorchSession):
    """A module and its inputs on the GPU."""

    def launch(self) -> None:
        TorchSession.run(self)


class TorchCuda(Backend):
    """PyTorch without a compiler, on the current CUDA device, cuDNN choosing its algorithms by trial."""

    name = "torch_cuda"
    distribution = "torch"
    untested = GPU
    memory = "torch.cuda"
    precisions = ("fp32", "fp16", "bf16")
    variants = ("contiguous", "channels_last")

    @classmethod
    def require(cls) -> None:
        super().require()
        require_gpu(cls.name)

    @classmethod
    def device_name(cls) -> str | None:
        return gpu_name()

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        dtype = DTYPES[self.precision]
        layout = torch.channels_last if self.variant == "channels_last" else torch.contiguous_format
        inputs: list[Tensor] = [x.to("cuda", dtype) for x in example_inputs(shapes)]
        inputs = [x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in inputs]
        ready = copy.deepcopy(module).to("cuda", dtype).to(memory_format=layout)
        return TorchCudaSession(ready, tuple(inputs))


BACKEND = TorchCuda
