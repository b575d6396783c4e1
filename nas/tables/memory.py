"""From what a network weighs to the memory it takes: a fit on networks whose peak memory was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.core.arch import Arch, steps_of
from nas.core.tracing import BYTES_PER_VALUE, params_of_unit

MIN_NETWORKS = 5  # fewer give no fit that could be checked


@dataclass(frozen=True)
class MemoryFit:
    """Peak memory as `weights * bytes of weights + activations * bytes of activations + base_bytes`, none negative.

    Attributes:
        weights: bytes taken for a byte of weights in fp32, such as 2 where a runtime packs a second copy.
        activations: bytes taken for a byte of the most activations alive at once, in fp32.
        base_bytes: taken by any network.
        networks: how many measured networks it was fitted on.
        mape_percent: mean absolute error on each network of a fit on the others.
    """

    weights: float
    activations: float
    base_bytes: float
    networks: int
    mape_percent: float

    def peak_bytes(self, arch: Arch) -> float:
        """The most memory that loading and running a network adds to a process."""
        return float(_features([arch])[0] @ (self.weights, self.activations, self.base_bytes))

    def least_bytes(self, params: float) -> float:
        """What no network with so many parameters or more stays below."""
        return self.weights * BYTES_PER_VALUE * params + self.base_bytes


def fit_memory(archs: Sequence[Arch], measured: Sequence[int]) -> MemoryFit:
    """Fit measured bytes, in relative error, by non-negative least squares.

    Args:
        archs: at least five.
        measured: peak bytes of each.
    """
    features, truth = _features(archs), np.asarray(measured, float)
    others = ~np.eye(len(truth), dtype=bool)
    guess = np.array([row @ _solve(features[rest], truth[rest]) for row, rest in zip(features, others, strict=True)])
    error = 100 * float(np.abs(guess / truth - 1).mean())
    weights, activations, base = map(float, _solve(features, truth))
    return MemoryFit(weights, activations, base, len(truth), error)


def _features(archs: Sequence[Arch]) -> np.ndarray:
    """Bytes of weights, bytes of activations, and one. Shape: (archs, 3)"""
    params = ((sum(params_of_unit(call.row) for call in calls), calls) for calls in map(steps_of, archs))
    return np.array([(BYTES_PER_VALUE * n, max(call.peak_bytes for call in calls), 1.0) for n, calls in params])


def _solve(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    sizes = features.max(0)
    found: np.ndarray = nnls(features / sizes / truth[:, None], np.ones(len(truth)))[0] / sizes
    return found
