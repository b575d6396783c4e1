"""Core ML on macOS, on whichever of CPU, GPU and Neural Engine it chooses; only CPU and GPU compute in fp32."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nas.core.errors import MeasureError
from nas.core.ops import Shape
from nas.networks.export import example_inputs
from nas.profiling.backends import Backend, Session

PRECISIONS = {"fp32": "FLOAT32", "fp16": "FLOAT16"}


class CoreMlSession(Session):
    """A loaded ML program, its inputs by name, and the names of its outputs in order."""

    def __init__(self, model: Any, feeds: dict[str, Any], names: list[str]) -> None:
        self.model, self.feeds, self.names = model, feeds, names

    def run(self) -> None:
        self.model.predict(self.feeds)

    def outputs(self) -> tuple[Any, ...]:
        made = self.model.predict(self.feeds)
        return tuple(made[name] for name in self.names)

    def feed(self, arrays: Sequence[Any]) -> None:
        self.feeds = {f"input{number}": array for number, array in enumerate(arrays)}


class CoreMl(Backend):
    """Core ML through coremltools, which converts TorchScript traces; Core ML sets its threads itself."""

    name = "coreml"
    distribution = "coremltools"
    extra = "coreml"
    untested = "an Apple computer with macOS"
    memory = None
    precisions = tuple(PRECISIONS)

    @classmethod
    def require(cls) -> None:
        if platform.system() != "Darwin":
            raise MeasureError(f"runtime {cls.name!r} needs {cls.untested}; this is {platform.system()}")
        super().require()

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        trace: Any = torch.jit.trace  # untyped
        inputs = example_inputs(shapes)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coremltools wants older versions of others, and traces branches on shapes
            import coremltools

            made = module(*inputs)
            names = [f"output{number}" for number in range(len(made) if isinstance(made, tuple) else 1)]
            model = coremltools.convert(
                trace(module, inputs, check_trace=False),
                inputs=[coremltools.TensorType(f"input{number}", tuple(x.shape)) for number, x in enumerate(inputs)],
                outputs=[coremltools.TensorType(name) for name in names],
                convert_to="mlprogram",
                compute_precision=getattr(coremltools.precision, PRECISIONS[self.precision]),
                compute_units=coremltools.ComputeUnit.ALL,
            )
        return CoreMlSession(model, {f"input{number}": x.numpy() for number, x in enumerate(inputs)}, names)


BACKEND = CoreMl
