"""A .tflite file in LiteRT on the CPU, with its XNNPACK delegate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from nas.profiling.device.sessions import Session, example_arrays

DISTRIBUTION, MODULE = "ai-edge-litert", "ai_edge_litert"


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


def load(path: Path, shapes: Sequence[Sequence[int]], threads: int, precision: str) -> Session:
    """Load a file, whose numbers are of the precision."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    arrays = {f"args_{number}": array for number, array in enumerate(example_arrays(shapes))}
    return LiteRTSession(
        interpreter,
        {entry["index"]: arrays[name] for name, entry in inputs.items()},
        tuple(outputs[f"output_{number}"]["index"] for number in range(len(outputs))),
    )
