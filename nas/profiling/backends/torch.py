"""PyTorch eager on the CPU, in contiguous or channels_last memory format, whichever runs whole networks faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.core.ops import Shape
from nas.networks.export import example_inputs
from nas.profiling.backends import Backend, Session

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class TorchSession(Session):
    """A module, or what was compiled of it, and its inputs."""

    def __init__(self, module: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        self.module, self.inputs = module, inputs

    def run(self) -> None:
        with torch.inference_mode():
            self.module(*self.inputs)

    def outputs(self) -> tuple[Any, ...]:
        with torch.inference_mode():
            made = self.module(*self.inputs)
        return tuple(y.float().cpu().numpy() for y in (made if isinstance(made, tuple) else (made,)))

    def feed(self, arrays: Sequence[Any]) -> None:
        with torch.inference_mode():  # in place: precision, memory format and device stay
            for x, array in zip(self.inputs, arrays, strict=True):
                x.copy_(torch.from_numpy(array))


class TorchEager(Backend):
    """PyTorch without a compiler. Its thread count belongs to the process: the last backend made sets it."""

    name = "torch"
    distribution = "torch"
    precisions = ("fp32", "bf16")
    variants = tuple(FORMATS)

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        torch.set_num_threads(self.threads)
        dtype, layout = DTYPES[self.precision], FORMATS[self.variant]
        inputs = (x.to(dtype) for x in example_inputs(shapes))
        inputs = (x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in inputs)
        return TorchSession(copy.deepcopy(module).to(dtype).to(memory_format=layout), tuple(inputs))


BACKEND = TorchEager
