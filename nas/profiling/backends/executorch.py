"""ExecuTorch on the CPU: XNNPACK runs what it knows of a graph, ExecuTorch's own kernels the rest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.networks.export import example_inputs
from nas.profiling.backends import FileBackend, Session

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.core.ops import Shape


class ExecuTorchSession(Session):
    """A loaded method and its inputs; a run copies inputs in and outputs out."""

    def __init__(self, program: Any, inputs: tuple[Tensor, ...]) -> None:
        self.program, self.inputs = program, inputs
        self.method = program.load_method("forward")

    def run(self) -> None:
        self.method.execute(self.inputs)

    def outputs(self) -> tuple[Any, ...]:
        return tuple(tensor.numpy() for tensor in self.method.execute(self.inputs))

    def feed(self, arrays: Sequence[Any]) -> None:
        import torch

        self.inputs = tuple(map(torch.from_numpy, arrays))


class ExecuTorch(FileBackend):
    """ExecuTorch with XNNPACK. Its thread pool belongs to the process: the last session loaded sets its size."""

    name = "executorch"
    distribution = "executorch"
    extra = "executorch"

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's libraries announce changes of their own
            import torch
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            try:
                exported = torch.export.export(module, example_inputs(shapes))
                edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
                path.write_bytes(edge.to_executorch().buffer)
            except Exception as error:
                raise MeasureError(f"ExecuTorch cannot convert it: {str(error).strip()}") from error

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != self.threads:
            portable_lib._unsafe_reset_threadpool(self.threads)
        return ExecuTorchSession(Runtime.get().load_program(path.read_bytes()), example_inputs(shapes))


BACKEND = ExecuTorch
