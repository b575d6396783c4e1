"""ONNX files without their large weights, which are random anyway: all read them from a few files of random numbers.

There is a file for each power of two that standard deviations are near to, so that activations neither vanish nor
overflow. The weights of one graph follow each other there, so copies of a block stay different memory, as they are in a
network; only one larger than `LIMIT_BYTES` reads some numbers twice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np

SHARED_BYTES = 4096  # initializers from this size on are read from the shared files
ALIGNMENT = 64
LIMIT_BYTES = 2**27  # a network with more begins again: the caches of a device that needs bundles hold less
CHUNK = 2**20


class SharedWeights:
    """The random numbers that ONNX graphs read their large weights from: ONNX external data.

    Attributes:
        sizes: of the files in bytes, by name.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._powers: dict[str, int | None] = {}

    def without_weights(self, path: Path) -> bytes:
        """The ONNX file at `path`, its large floating-point initializers read from the shared files instead."""
        import onnx
        from onnx.external_data_helper import set_external_data
        from onnx.numpy_helper import from_array, to_array

        model = onnx.load(str(path))
        used: dict[str, int] = defaultdict(int)
        for tensor in model.graph.initializer:
            if tensor.data_type != onnx.TensorProto.FLOAT:
                continue
            values = to_array(tensor)
            name = self._file_of(values)
            if name is None:
                continue
            start = used[name] if used[name] + values.nbytes <= LIMIT_BYTES else 0
            used[name] = start + -(-values.nbytes // ALIGNMENT) * ALIGNMENT
            self.sizes[name] = max(self.sizes.get(name, 0), used[name])
            tensor.CopyFrom(from_array(values, tensor.name))
            set_external_data(tensor, name, offset=start, length=values.nbytes)
            tensor.ClearField("raw_data")
        return bytes(model.SerializeToString())

    def _file_of(self, values: np.ndarray) -> str | None:
        """The shared file with numbers about as large as these; None for a tensor that is to stay as it is."""
        deviation = float(values.std())
        if values.nbytes < SHARED_BYTES or (deviation == 0 and values.any()):
            return None
        power = round(math.log2(deviation)) if deviation else None
        name = "zeros.bin" if power is None else f"normal{power:+d}.bin"
        self._powers[name] = power
        return name

    def write(self, folder: Path) -> None:
        """Write the shared files."""
        for name, size in self.sizes.items():
            power, rng = self._powers[name], np.random.default_rng(0)
            with (folder / name).open("wb") as file:
                for start in range(0, size // 4, CHUNK):
                    count = min(CHUNK, size // 4 - start)
                    normal = rng.standard_normal(count, dtype=np.float32)
                    file.write((normal * np.float32(0.0 if power is None else 2.0**power)).tobytes())
