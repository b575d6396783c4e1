"""TensorRT 10 on an NVIDIA GPU: engines built from ONNX files, timed by CUDA events. fp32 is full fp32: TF32 is off.

Networks are strongly typed: TensorRT computes in the types of the file, whose weights, inputs and outputs are all fp16
or all fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.core.errors import MeasureError
from nas.core.ops import Shape
from nas.networks.export import example_inputs, write_onnx
from nas.profiling.backends import FileBackend, Session
from nas.profiling.backends.torch import DTYPES
from nas.profiling.backends.torch_cuda import GPU, CudaSession, gpu_name, require_gpu


class TensorRtSession(CudaSession):
    """An execution context, with its inputs and outputs by name."""

    def __init__(self, context: Any, tensors: dict[str, Tensor]) -> None:
        self.context, self.tensors = context, tensors
        stream: Any = torch.cuda.Stream  # untyped
        self.stream = stream()
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())

    def launch(self) -> None:
        if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise MeasureError("TensorRT could not enqueue an inference")

    def run(self) -> None:
        with torch.cuda.stream(self.stream):  # TensorRT synchronizes once more on the default stream
            super().run()

    def timed_run(self) -> float:
        with torch.cuda.stream(self.stream):
            return super().timed_run()

    def outputs(self) -> tuple[Any, ...]:
        self.run()
        return tuple(tensor.float().cpu().numpy() for name, tensor in self.tensors.items() if name.startswith("output"))

    def feed(self, arrays: Sequence[Any]) -> None:
        for number, array in enumerate(arrays):
            if f"input{number}" in self.tensors:
                self.tensors[f"input{number}"].copy_(torch.from_numpy(array))


class TensorRt(FileBackend):
    """TensorRT's builder and runtime; an engine belongs to the GPU and version that built it."""

    name = "tensorrt"
    distribution = "tensorrt"
    extra = "tensorrt"
    untested = GPU
    memory = None
    precisions = ("fp32", "fp16")

    @classmethod
    def require(cls) -> None:
        require_gpu(cls.name)
        super().require()

    @classmethod
    def device_name(cls) -> str | None:
        return gpu_name()

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        import tensorrt

        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = tensorrt.OnnxParser(network, logger)
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            write_onnx(module, shapes, file.name, DTYPES[self.precision])
            if not parser.parse(Path(file.name).read_bytes()):
                reasons = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
                raise MeasureError(f"TensorRT cannot read this: {reasons}")
        config = builder.create_builder_config()
        config.clear_flag(tensorrt.BuilderFlag.TF32)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise MeasureError("TensorRT cannot build an engine of this; its log says why")
        path.write_bytes(bytes(plan))

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        import tensorrt

        engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise MeasureError(f"TensorRT cannot load {path}: another GPU or version has built it")
        dtype = DTYPES[self.precision]
        inputs = {f"input{number}": x.to("cuda", dtype) for number, x in enumerate(example_inputs(shapes))}
        tensors = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            size = tuple(engine.get_tensor_shape(name))
            tensors[name] = inputs[name] if name in inputs else torch.empty(size, dtype=dtype, device="cuda")
        return TensorRtSession(engine.create_execution_context(), tensors)


BACKEND = TensorRt
