"""Graphs for tests of runtimes that convert models, and how far their outputs are from PyTorch's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nas.core.ops import Row, Shape
from nas.networks.export import example_inputs
from nas.profiling.backends import load_backend
from nas.profiling.probes import Probe
from search_spaces.efficientformer import MB3D, MB4D
from search_spaces.mobileformer import BridgeIn

GRAPHS = {
    "convolutions": Probe((Row(MB4D(2), (Shape(1, 16, 8, 8),)),)),
    "attention with layer norm and GELU": Probe((Row(MB3D(2), (Shape(1, 16, 32),)),)),
    "two inputs and two outputs": Probe((Row(BridgeIn(), (Shape(1, 2, 16), Shape(1, 12, 7, 7))),)),
    "nothing": Probe(idle=(Shape(1, 16, 8, 8),)),
}
CONVOLUTIONS = GRAPHS["convolutions"]


class Fourier(nn.Module):
    """An op that none of them has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).abs()


def worst_difference(runtime: str, probe: Probe, precision: str = "fp32") -> float:
    """The largest difference of a runtime's outputs from PyTorch's, over their largest value."""
    module = probe.module(0)
    outputs = load_backend(runtime)(1, precision).prepare(module, probe.shapes()).outputs()
    expected = module(*example_inputs(probe.shapes()))
    differences = []
    for tensor, array in zip(expected if isinstance(expected, tuple) else (expected,), outputs, strict=True):
        assert (array.shape, array.dtype) == (tensor.shape, np.float32)
        differences.append(float((tensor - torch.from_numpy(array)).abs().max() / tensor.abs().max()))
    return max(differences)
