"""PyTorch eager on the CPU, in contiguous or channels_last memory format, whichever runs whole networks faster."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.export import example_inputs
from nas.ops import Shape
from nas.profiling.backends import Backend, Session

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class TorchSession(Session):
    """A module and its inputs, in one memory format."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module, self.inputs = module, inputs

    def run(self) -> None:
        with torch.inference_mode():
            self.module(*self.inputs)


class TorchEager(Backend):
    """PyTorch without a compiler. Its thread count belongs to the process: the last backend made sets it."""

    name = "torch"
    distribution = "torch"
    variants = tuple(FORMATS)

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        torch.set_num_threads(self.threads)
        layout = FORMATS[self.variant]
        inputs = (x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in example_inputs(shapes))
        return TorchSession(copy.deepcopy(module).to(memory_format=layout), tuple(inputs))


BACKEND = TorchEager
