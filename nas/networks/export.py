"""Files of a network for runtimes, in deployed form: norms folded, heads merged, layer scales folded.

A format is one function in `FORMATS`. ONNX goes through PyTorch's TorchScript exporter: it takes 6 to 80 ms a block,
the newer one over a second, and from opset 20 on it keeps GELU one node, which runtimes fuse.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import InputError, MeasureError, suggest
from nas.core.files import whole
from nas.profiling.device.sessions import example_arrays

if TYPE_CHECKING:  # a process that only runs files does without PyTorch
    import torch
    from torch import Tensor, nn

    from nas.core.ops import Shape

OPSET = 20  # the first with a GELU of its own; below, it becomes five nodes that ONNX Runtime does not fuse again
TOLERANCE = 1e-4


def export(model: nn.Module, shapes: Sequence[Shape], path: str | os.PathLike[str], format: str = "onnx") -> Path:
    """Write a model to a file.

    Args:
        model: in training or deployed form; it is left as it is.
        shapes: one shape per input tensor, batch included.
        path: the file to write; it appears whole or not at all.
        format: a name in `FORMATS`.

    Raises:
        InputError: for an unknown format, naming the closest ones.
    """
    if format not in FORMATS:
        raise InputError(suggest("format", format, FORMATS))
    return FORMATS[format](model, shapes, path)


def export_onnx(model: nn.Module, shapes: Sequence[Shape], path: str | os.PathLike[str]) -> Path:
    """Write an ONNX file with inputs `input0`, `input1`, ... and outputs `output0`, ...; see `export`."""
    with whole(path) as temporary:
        write_onnx(deployed(model), shapes, temporary)
    return Path(path)


def write_onnx(
    model: nn.Module, shapes: Sequence[Shape], path: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Write a model that is in deployed form already straight to `path`, all in `dtype`, None for fp32."""
    import torch

    inputs = example_inputs(shapes)
    if dtype is not None:
        model, inputs = copy.deepcopy(model).to(dtype), tuple(x.to(dtype) for x in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter announces its own end, and traces branches on shapes
        torch.onnx.export(
            model,
            inputs,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[f"input{number}" for number in range(len(inputs))],
            output_names=[f"output{number}" for number in range(_outputs_of(model, inputs))],
        )


def check_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    images: Sequence[Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference between the outputs of an ONNX file and of its model, over the largest output.

    Args:
        path: a file that `export_onnx` wrote.
        model: the model it was written from, in training or deployed form.
        images: what to compare on, for a model of one input; None for random numbers.
        tolerance: above it the file is not accepted; of 16 images, one may differ by more, since where a network keeps
            tokens by rank, a near tie falls either way.

    Raises:
        MeasureError: where the outputs differ by more than `tolerance`, or ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MeasureError("checking an ONNX file needs ONNX Runtime: pip install 'millinas[onnxruntime]'") from error
    from nas.core.ops import Shape

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    random = [example_inputs([Shape(*entry.shape) for entry in session.get_inputs()])]
    samples = random if images is None else [(image,) for image in images]
    network = deployed(model)
    differences = [_difference(session, names, network, inputs) for inputs in samples]
    worst = max(differences)
    if sum(not difference <= tolerance for difference in differences) > len(differences) // 16:  # NaN is no pass
        raise MeasureError(f"{path}: outputs differ from PyTorch's by {worst:.2g} of the largest, over {tolerance:g}")
    return worst


def _difference(session: Any, names: Sequence[str], model: nn.Module, inputs: Sequence[Tensor]) -> float:
    import torch

    got = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        expected = model(*inputs)
    outputs = expected if isinstance(expected, (tuple, list)) else (expected,)
    pairs = zip(outputs, map(torch.from_numpy, got), strict=True)
    return max(float((y - x).abs().max() / y.abs().max().clamp_min(1e-12)) for y, x in pairs)


def deployed(model: nn.Module) -> nn.Module:
    """A copy of a model in deployed form and eval mode; a model that is in it already comes back unchanged."""
    if not model.training and not any(parameter.requires_grad for parameter in model.parameters()):
        return model  # only `fuse` leaves a model without anything to train
    from nas.networks.building import fuse

    return fuse(model)


def example_inputs(shapes: Sequence[Shape], seed: int = 0) -> tuple[Tensor, ...]:
    """Standard normal tensors of these shapes, the same for the same seed."""
    import torch

    return tuple(map(torch.from_numpy, example_arrays(shapes, seed)))


def _outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    outputs = model(*inputs)
    return len(outputs) if isinstance(outputs, (tuple, list)) else 1


FORMATS: dict[str, Callable[[nn.Module, Sequence[Shape], str | os.PathLike[str]], Path]] = {"onnx": export_onnx}
