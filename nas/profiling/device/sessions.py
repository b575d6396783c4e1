"""A model, ready to run on fixed random inputs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Sequence

import numpy as np

from nas.core.errors import MeasureError


class Session(ABC):
    """A model, loaded and ready, with fixed random inputs at batch 1: `example_arrays`."""

    @abstractmethod
    def run(self) -> None:
        """Run one inference, to its end."""

    def timed_run(self) -> float:
        """Run one inference; how long it took, in seconds."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def outputs(self) -> tuple[Any, ...]:
        """Run one inference and give its outputs as fp32 NumPy arrays, in the order of the module's.

        Raises:
            MeasureError: where the runtime computes nothing.
        """
        raise MeasureError(f"{type(self).__name__} gives no outputs")

    def feed(self, arrays: Sequence[Any]) -> None:
        """Run on other inputs from now on: fp32 arrays of the same shapes, in the order of the module's.

        Raises:
            MeasureError: where the runtime takes none.
        """
        raise MeasureError(f"{type(self).__name__} takes no other inputs")


def example_arrays(shapes: Sequence[Sequence[int]], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Standard normal fp32 arrays of these shapes, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(tuple(shape), dtype=np.float32) for shape in shapes)
