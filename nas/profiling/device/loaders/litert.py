"""A .tflite file in LiteRT on the CPU, with its XNNPACK delegate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from nas.profiling.device.sessions import Session, example_arrays

DISTRIBUTION, MODULE = "ai-edge-litert", "ai_edge_litert"


class LiteRTSession(Session):
    """An interpreter, its inputs with the numbers of their tensors (None where one is unused), and those of its
    outputs.
    """

    def __init__(self, interpreter: Any, arrays: Sequence[Any], numbers: Sequence[Any], outputs: Sequence[int]) -> None:
        self.interpreter, self.arrays, self.inputs, self.numbers = interpreter, arrays, numbers, outputs

    def run(self) -> None:
        for number, array in zip(self.inputs, self.arrays):
            if number is not None:
                self.interpreter.set_tensor(number, array)
        self.interpreter.invoke()

    def outputs(self) -> tuple[Any, ...]:
        self.run()
        return tuple(self.interpreter.get_tensor(number) for number in self.numbers)

    def feed(self, arrays: Sequence[Any]) -> None:
        self.arrays = arrays


def load(path: Path, shapes: Sequence[Sequence[int]], threads: int, precision: str) -> Session:
    """Load a file, whose numbers are of the precision."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    return LiteRTSession(
        interpreter,
        example_arrays(shapes),
        [inputs.get(f"args_{number}", {"index": None})["index"] for number in range(len(shapes))],
        [outputs[f"output_{number}"]["index"] for number in range(len(outputs))],
    )
