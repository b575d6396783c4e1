"""PyTorch compiled on the CPU: `torch.compile` with Inductor, which writes C++ and needs a compiler for it."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.core.errors import MeasureError
from nas.core.ops import Shape
from nas.networks.export import example_inputs
from nas.profiling.backends import Backend, Session
from nas.profiling.backends.torch import DTYPES, TorchSession

_lines = itertools.count(1)


class TorchCompile(Backend):
    """Inductor in its default mode, for fixed shapes; compiled code is kept on disk for the next process by PyTorch."""

    name = "torch_compile"
    distribution = "torch"
    precisions = ("fp32", "bf16")

    @classmethod
    def require(cls) -> None:
        super().require()
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise MeasureError(
                f"runtime {cls.name!r} needs a C++ compiler, and {compiler!r} is not on the PATH: install g++, or name "
                "one in the environment variable CXX"
            )

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        torch.set_num_threads(self.threads)
        dtype = DTYPES[self.precision]
        options: dict[str, Any] = {
            "cpp.threads": self.threads,
            "compile_threads": 1,
        }  # no pool of processes beside what is timed
        compiled = torch.compile(_on_its_own(copy.deepcopy(module).to(dtype)), dynamic=False, options=options)
        session = TorchSession(compiled, tuple(x.to(dtype) for x in example_inputs(shapes)))
        session.run()  # compiles
        return session


def _on_its_own(module: nn.Module) -> Callable[..., Any]:
    """A function that calls the module and has code of its own.

    What is compiled hangs on a code object, in a list with a limit that every call searches: modules of one class would
    slow each other down and, beyond the limit, run uncompiled.
    """

    def call(*inputs: Tensor) -> Any:
        return module(*inputs)

    call.__code__ = call.__code__.replace(co_firstlineno=next(_lines))
    return call


BACKEND = TorchCompile
