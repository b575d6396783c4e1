"""ncnn on the CPU; pnnx, a process of its own, converts, half a second a block.

pnnx leaves out or bends what ncnn cannot do, so what it makes is compared with PyTorch at once.
"""

from __future__ import annotations

import re
import subprocess
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.errors import MeasureError
from nas.core.files import scratch
from nas.networks.export import example_inputs
from nas.profiling.backends import FileBackend, Session
from nas.profiling.device.sessions import example_arrays

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.overrides import TorchFunctionMode

    from nas.core.ops import Shape

# what pnnx makes of model.pt: the graph, its weights, and a script that tells where the batch axis of each tensor is
GRAPH, WEIGHTS, SCRIPT = "model.ncnn.param", "model.ncnn.bin", "model_ncnn.py"
BATCH_AXIS = re.compile(r"((?:in|out)\d+)\.numpy\((?:\), )?batch_index=(\d+)\)")
#: largest difference from PyTorch's outputs that a converted model may have, over their largest value
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05}
NONE = 233  # ncnn's number for "no batch axis"; the script leaves out inputs that are outputs as well


class NcnnSession(Session):
    """A network, its inputs by the names of their blobs, and the batch axes of inputs and outputs by name."""

    def __init__(self, net: Any, arrays: Sequence[Any], axes: dict[str, int]) -> None:
        self.net, self.axes = net, axes
        self.batch_axes = {name: axis for name, axis in axes.items() if name.startswith("out")}
        self.feed(arrays)

    def feed(self, arrays: Sequence[Any]) -> None:
        import ncnn

        mats = {
            f"in{number}": ncnn.Mat(array, batch_index=self.axes.get(f"in{number}", NONE)).clone()
            for number, array in enumerate(arrays)
        }
        layers = (layer for layer in self.net.layers() if layer.type == "Input")
        self.inputs = {self.net.blobs()[layer.tops[0]].name: mats[layer.name] for layer in layers}

    def run(self) -> None:
        self.extract()

    def outputs(self) -> tuple[Any, ...]:
        axes = self.batch_axes.values()
        return tuple(mat.numpy(batch_index=axis).copy() for mat, axis in zip(self.extract(), axes, strict=True))

    def extract(self) -> list[Any]:
        """Run one inference; its outputs.

        Raises:
            MeasureError: where ncnn fails, which it only says by a number.
        """
        extractor = self.net.create_extractor()
        for name, mat in self.inputs.items():
            extractor.input(name, mat)
        mats = []
        for name in self.batch_axes:
            code, mat = extractor.extract(name)
            if code:
                raise MeasureError(f"ncnn cannot run it: {name} ended with {code}")
            mats.append(mat)
        return mats


class Ncnn(FileBackend):
    """ncnn's layers. A converted model is a zip archive of pnnx's files.

    In fp16 weights and activations are halves; so is arithmetic where the CPU has it.
    """

    name = "ncnn"
    distribution = "ncnn"
    extra = "ncnn"
    precisions = tuple(TOLERANCES)

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        import torch

        inputs = example_inputs(shapes)
        with scratch("ncnn") as folder, torch.no_grad():
            with warnings.catch_warnings(), _plain():
                warnings.simplefilter("ignore")  # the trace announces its own end, and traces branches on shapes
                trace: Any = torch.jit.trace  # it has no types
                trace(module, inputs, check_trace=False).save(f"{folder}/model.pt")
            self._pnnx(folder)
            with zipfile.ZipFile(path, "w") as archive:
                for name in (GRAPH, WEIGHTS, SCRIPT):
                    archive.write(Path(folder, name), name)
            expected = module(*inputs)
        self._compare(path, shapes, expected if isinstance(expected, tuple) else (expected,))

    def _pnnx(self, folder: str) -> None:
        """Convert model.pt in a folder."""
        import ncnn
        import pnnx

        command = [pnnx.EXEC_PATH, "model.pt", f"fp16={int(self.precision == 'fp16')}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise MeasureError(f"pnnx cannot convert it: ended with {done.returncode}, saying {last!r} last")
        layers = Path(folder, GRAPH).read_text(encoding="utf-8").splitlines()[2:]
        unknown = [kind for kind in dict.fromkeys(line.split()[0] for line in layers) if ncnn.layer_to_index(kind) < 0]
        if unknown:
            raise MeasureError(f"ncnn has no layer for {', '.join(unknown)}")

    def _compare(self, path: Path, shapes: Sequence[Shape], expected: tuple[Tensor, ...]) -> None:
        """Raise where ncnn computes something else."""
        for tensor, array in zip(expected, self.load(path, shapes).outputs(), strict=True):
            if tensor.shape != array.shape:
                raise MeasureError(f"ncnn gives an output of shape {array.shape} for {tuple(tensor.shape)}")
            difference = float(abs(tensor.numpy() - array).max() / tensor.abs().max().clamp_min(1e-12))
            if not difference <= TOLERANCES[self.precision]:  # NaN is no pass
                raise MeasureError(f"ncnn's outputs differ from PyTorch's by {difference:.2g} of the largest")

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = self.threads
        half = self.precision == "fp16"  # ncnn uses it by itself unless told not to
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
        with scratch("ncnn") as folder:
            zipfile.ZipFile(path).extractall(folder)
            script = Path(folder, SCRIPT).read_text(encoding="utf-8")
            codes = net.load_param(f"{folder}/{GRAPH}"), net.load_model(f"{folder}/{WEIGHTS}")
        if any(codes):
            raise MeasureError(f"ncnn cannot load it: {codes}")
        axes = {name: int(axis) for name, axis in BATCH_AXIS.findall(script)}
        return NcnnSession(net, example_arrays(shapes), axes)


def _plain() -> TorchFunctionMode:
    """A mode that writes `addcmul`, which pnnx does not know, as the ops it is made of."""
    import torch
    from torch.overrides import TorchFunctionMode

    def addcmul(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x + y * z

    class Plain(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return (addcmul if func is torch.addcmul else func)(*args, **kwargs or {})

    return Plain()


BACKEND = Ncnn
