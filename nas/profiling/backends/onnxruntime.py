"""ONNX Runtime on the CPU, one arena, sequential execution, all graph optimizations.

int8 is static post-training quantization to QDQ nodes: unsigned activations with the ranges that the calibration's
inputs show, signed weights per output channel. Which ops it reaches is ONNX Runtime's default.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.core.files import scratch
from nas.networks.export import write_onnx
from nas.profiling.backends import Calibration, FileBackend, ProfiledSession, Session
from nas.profiling.device.loaders.onnxruntime import OnnxSession, load, named, opened, options_of

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from torch import nn

    from nas.core.ops import Shape

#: kinds of ops, as they are kept in fp32 one at a time; a matrix product of two activations is attention's
KINDS = ("convolution", "depthwise convolution", "linear", "attention", "softmax", "layer norm", "GELU", "addition")
#: ops that only move numbers, so that a tensor behind one is rounded where the one before it is
MOVING = {"Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Gather"}


class ProfiledOnnxSession(OnnxSession, ProfiledSession):
    """One that writes an event for each kernel and each run to a file; `folder` holds it."""

    def __init__(self, session: Any, feeds: dict[str, Any], folder: TemporaryDirectory[str]) -> None:
        super().__init__(session, feeds)
        self.folder = folder

    def nodes(self) -> list[list[tuple[str, float]]]:
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        self.folder.cleanup()
        kernels = sorted((e for e in events if e.get("cat") == "Node"), key=lambda e: e["ts"])
        kernels = [event for event in kernels if event["name"].endswith("_kernel_time")]
        return [
            [
                (kernel["name"].removesuffix("_kernel_time"), float(kernel["dur"]))
                for kernel in kernels
                if run["ts"] <= kernel["ts"] <= run["ts"] + run["dur"]
            ]
            for run in sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])
        ]


class OnnxRuntime(FileBackend):
    """ONNX Runtime's CPU execution provider."""

    name = "onnxruntime"
    suffix = ".onnx"
    distribution = "onnxruntime"
    extra = "onnxruntime"
    precisions = ("fp32", "int8")
    profiles_nodes = True
    method = "in-situ"

    def convert(self, module: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        if self.precision == "int8":
            write_quantized_onnx(module, shapes, path, self.calibration)
        else:
            write_onnx(module, shapes, path)

    def kinds_quantized(self, module: nn.Module, shapes: Sequence[Shape]) -> tuple[str, ...]:
        return onnx_kinds(module, shapes)

    def load(self, path: Path, shapes: Sequence[Shape]) -> Session:
        return load(path, shapes, self.threads, self.precision)

    def load_profiled(self, path: Path, shapes: Sequence[Shape]) -> ProfiledSession:
        folder = scratch("nodes")
        options = options_of(self.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder.name) / "nodes")
        return ProfiledOnnxSession(*opened(path, shapes, options), folder)


def write_quantized_onnx(module: nn.Module, shapes: Sequence[Shape], path: Path, calibration: Calibration) -> None:
    """Write a module in deployed form to `path` as int8."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, used: set[str]) -> None:
            self.inputs = (named(arrays, used) for arrays in calibration.samples(shapes))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    with scratch("int8") as folder:
        plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
        write_onnx(module, shapes, plain)
        used = {entry.name for entry in onnx.load(str(plain)).graph.input}
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)  # shapes are fixed: nothing symbolic
        kinds = _kinds_of(onnx.load(str(ready)).graph)
        kept = {name for name, kind in kinds.items() if kind in calibration.kept}
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it warns of each op that it leaves as it is
        try:
            quantize_static(
                str(ready),
                str(path),
                Reader(used),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(kept),
                # where rounding goes, a ReLU that it stood for would go, too
                extra_options={"QDQKeepRemovableActivations": bool(kept)},
            )
        finally:
            logging.root.setLevel(level)
    if kept:
        model = onnx.load(str(path))
        _leave_unrounded(model.graph, kept)
        onnx.save(model, str(path))


def _leave_unrounded(graph: Any, kept: set[str]) -> None:
    """Take away the rounding of every tensor that these nodes read or give: left alone, a node still gets and gives
    what its neighbours round.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounded = {}  # what a pair of nodes gives, by what it takes: a tensor and the same one, rounded
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is not None and before.op_type == "QuantizeLinear":
            rounded[node.output[0]] = before.input[0]
    pairs: dict[str, list[str]] = {}
    for after, name in rounded.items():
        pairs.setdefault(name, []).append(after)
    waiting, seen, exact = [node for node in graph.node if node.name in kept], set[str](), set[str]()
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        given = [makers.get(rounded.get(name, name)) for name in node.input]
        taken = [
            each for name in node.output for after in (name, *pairs.get(name, [])) for each in readers.get(after, [])
        ]
        exact.update(name for name in node.input if name in rounded)
        exact.update(after for name in node.output for after in pairs.get(name, []))
        waiting += [each for each in (*given, *taken) if each is not None and each.op_type in MOVING]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in exact:
                node.input[place] = rounded[name]
    outputs = {entry.name for entry in graph.output}
    while True:
        used = outputs | {name for node in graph.node for name in node.input}
        idle = [node for node in graph.node if not used & set(node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)


def onnx_kinds(module: nn.Module, shapes: Sequence[Shape]) -> tuple[str, ...]:
    """The kinds of ops of a module in deployed form that are quantized, in the order of `KINDS`."""
    import onnx

    with scratch("kinds") as folder:
        path = Path(folder) / "plain.onnx"
        write_onnx(module, shapes, path)
        found = set(_kinds_of(onnx.load(str(path)).graph).values())
    return tuple(kind for kind in KINDS if kind in found)


def _kinds_of(graph: Any) -> dict[str, str]:
    """The kind of each node of an ONNX graph that has one, by its name."""
    weights = {entry.name for entry in graph.initializer}
    plain = {"Gemm": "linear", "Softmax": "softmax", "LayerNormalization": "layer norm", "Gelu": "GELU"}
    plain["Add"] = "addition"
    kinds = {}
    for node in graph.node:
        if node.op_type == "Conv":
            groups: Iterable[int] = (attribute.i for attribute in node.attribute if attribute.name == "group")
            kinds[node.name] = "depthwise convolution" if next(iter(groups), 1) > 1 else "convolution"
        elif node.op_type == "MatMul":
            kinds[node.name] = "linear" if weights & set(node.input) else "attention"
        elif node.op_type in plain:
            kinds[node.name] = plain[node.op_type]
    return kinds


BACKEND = OnnxRuntime
