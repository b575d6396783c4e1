"""LiteRT (formerly TensorFlow Lite) on the CPU, with its XNNPACK delegate; litert-torch converts, a second a block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.core.errors import MeasureError
from nas.networks.export import example_inputs
from nas.profiling.backends import FileBackend, Session
from nas.profiling.device.loaders.litert import load

if TYPE_CHECKING:
    from torch import nn

    from nas.core.ops import Shape


class LiteRT(FileBackend):
    """LiteRT's interpreter. Inputs and outputs keep PyTorch's layout; the graph transposes maps to (N, H, W, C)."""

    name = "litert"
    suffix = ".tflite"
    distribution = "ai-edge-litert"
    import_name = "litert_torch"  # which needs the runtime itself
    extra = "litert"

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter's libraries announce changes of their own
            import litert_torch

            try:
                litert_torch.convert(module, example_inputs(shapes)).export(str(path))
            except Exception as error:
                raise MeasureError(f"litert-torch cannot convert it: {str(error).strip()}") from error

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        return load(path, shapes, self.threads, self.precision)


BACKEND = LiteRT
