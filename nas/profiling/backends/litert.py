"""LiteRT (formerly TensorFlow Lite) on the CPU, with its XNNPACK delegate; litert-torch converts, a second a block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.networks.export import example_arrays, example_inputs
from nas.profiling.backends import FileBackend, Session

if TYPE_CHECKING:
    from torch import nn

    from nas.core.ops import Shape


class LiteRTSession(Session):
    """An interpreter, what goes into it, and where its outputs are, by the numbers of its tensors."""

    def __init__(self, interpreter: Any, inputs: dict[int, Any], numbers: tuple[int, ...]) -> None:
        self.interpreter, self.inputs, self.numbers = interpreter, inputs, numbers

    def run(self) -> None:
        for number, array in self.inputs.items():
            self.interpreter.set_tensor(number, array)
        self.interpreter.invoke()

    def outputs(self) -> tuple[Any, ...]:
        self.run()
        return tuple(self.interpreter.get_tensor(number) for number in self.numbers)


class LiteRT(FileBackend):
    """LiteRT's interpreter. Inputs and outputs keep PyTorch's layout; the graph transposes maps to (N, H, W, C)."""

    name = "litert"
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
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=self.threads)
        interpreter.allocate_tensors()
        signature = interpreter.get_signature_runner()
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        arrays = {f"args_{number}": array for number, array in enumerate(example_arrays(shapes))}
        return LiteRTSession(
            interpreter,
            {entry["index"]: arrays[name] for name, entry in inputs.items()},
            tuple(outputs[f"output_{number}"]["index"] for number in range(len(outputs))),
        )


BACKEND = LiteRT
