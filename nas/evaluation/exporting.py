"""Files of a network for runtimes, each with a script that runs it with the runtime alone.

A file takes its name only after that script, in a process of its own, gave PyTorch's outputs on real images. What a
network has to take along (classes, normalisation, arch) is inside the file where its format has room, and in the
script.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nas
from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError, suggest
from nas.core.files import scratch, whole
from nas.core.ops import Shape
from nas.evaluation.checkpoint import write_safetensors
from nas.evaluation.data import Data, load_data
from nas.evaluation.deployment import CALIBRATION_IMAGES, INT8, Deployment
from nas.evaluation.pretrained import load_pretrained, passport_beside
from nas.networks.building import Network, build, input_shape_of, with_classes
from nas.networks.export import TOLERANCE, deployed, example_inputs
from nas.networks.python import export_python
from nas.profiling.backends import Calibration, FileBackend, load_backend

IMAGES = {INT8: 1000}  # that a file is checked on; accuracy needs more than outputs do
FEW_IMAGES = 32
TOLERANCES = {"fp32": TOLERANCE, "fp16": 0.05}
MAX_DROP = 0.02
PASSPORT = "nas"  # the key of what a file says of itself

Facts = Mapping[str, Any]
Write = Callable[[Network, "Format", str, Calibration, Path, Facts], None]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of the file.
        runtime: the backend that makes it; "" where PyTorch does.
        precisions: that it can have.
        needs: what pip installs to run it.
        load: source of `load(path)`, which gives a function from an array (1, C, H, W) to the outputs (classes,).
        write: makes the file.
        beside: suffix of a second file that belongs to it, "" for none.
    """

    suffix: str
    runtime: str
    precisions: tuple[str, ...]
    needs: str
    load: str
    write: Write
    beside: str = ""

    def second(self, path: Path) -> Path | None:
        """The file that belongs to one of this format."""
        return path.with_suffix(self.beside) if self.beside else None


def export_arch(
    arch: Arch,
    target: Path,
    format: str = "onnx",
    weights: str | None = None,
    *,
    precision: str = "fp32",
    data: str | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    max_drop: float = MAX_DROP,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Export a network, and compare what the file computes with PyTorch.

    In deployed form; `python` is the network itself, as a file of plain PyTorch for the same weights, and `safetensors`
    are its weights as they are trained.

    Args:
        arch: its head is fitted to the data's classes, where data is given.
        target: the file to write; a script with `.py` behind this name comes beside it.
        format: of the file.
        weights: as `load_pretrained` takes them; None for fresh ones.
        precision: one that the format has.
        data: as `load_data` takes it, for the images to compare on, for int8 and for what the file says of its
            classes; None for random images.
        calibration_images: of the training split, for int8.
        max_drop: accuracy that int8 may cost on the images it is compared on, 0..1.
        seed, limit: of the division of the data, as when the weights were trained.

    Raises:
        InputError: unknown format or precision, weights that do not fit the arch or the data, int8 without data.
        MeasureError: the runtime is not installed, cannot do it, or the file computes something else; no file is left.
    """
    if format != "python" and format not in FORMATS:
        raise InputError(suggest("format", format, [*FORMATS, "python"]))
    legal = FORMATS[format].precisions if format != "python" else ("fp32",)
    if precision not in legal:
        raise InputError(f"format {format}: {suggest('precision', precision, legal)}")
    if precision == INT8 and data is None:
        raise InputError("int8 is made with real images, and accepted by its accuracy on others: name them (--data)")
    kind = FORMATS.get(format)
    if kind is not None and kind.runtime:
        load_backend(kind.runtime)(1, "fp32" if precision == INT8 else precision)  # before what takes long
    found = None if data is None else load_data(data, arch.input_shape, seed=seed, limit=limit)
    fitted = arch if found is None else with_classes(arch, found.classes)
    network = build(fitted).eval()
    loaded = None if weights is None else load_pretrained(network, weights, whole=True)
    passport = found.passport if found is not None else passport_beside(weights) if weights else {}
    facts: dict[str, Any] = {"arch": fitted.id, "file": str(target), "format": format, "precision": precision}
    facts["weights"] = loaded.source if loaded else None
    if kind is None:
        off = export_python(network, target, passport, loaded and loaded.source)
        return facts | {"bytes": target.stat().st_size, "difference": off}
    about = {"arch": json.loads(fitted.to_json()), "nas": nas.__version__, "precision": precision} | passport
    with scratch("export") as folder:
        staged = Path(folder) / target.name
        calibration = Calibration()
        if precision == INT8:
            assert found is not None
            deployment = Deployment(network, found, calibration_images=calibration_images, images=1)
            calibration = deployment.calibration()
            facts["calibration_images"] = deployment.calibration_images
        kind.write(network, kind, precision, calibration, staged, about)
        script = staged.with_name(f"{staged.name}.py")
        script.write_text(_script(kind, precision, staged.name, fitted, passport), encoding="utf-8")
        facts |= _checked(script, deployed(network), fitted.input_shape, found, precision, max_drop)
        for made in (kind.second(staged), script, staged):
            if made is not None:
                with whole(target.with_name(made.name)) as temporary:
                    shutil.copyfile(made, temporary)
    return facts | {"bytes": target.stat().st_size, "script": f"{target}.py"}


def _checked(
    script: Path,
    model: torch.nn.Module,
    sides: tuple[int, int, int],
    data: Data | None,
    precision: str,
    max_drop: float,
) -> dict[str, Any]:
    """What a script's outputs are beside PyTorch's.

    Raises:
        MeasureError: they are something else, or it ends in an error.
    """
    images, labels = _images(sides, data, IMAGES.get(precision, FEW_IMAGES))
    with torch.no_grad():
        expected = torch.cat([model(part) for part in torch.split(images, FEW_IMAGES)]).numpy()
    given, made = script.with_name("images.npy"), script.with_name("outputs.npy")
    np.save(given, images.numpy())
    # also in a process without this package on its path
    command = [
        sys.executable,
        *([] if "safetensors" in script.name else ["-I"]),
        str(script),
        str(given),
        "--out",
        str(made),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise MeasureError(f"{script.stem}: its script fails with {done.returncode}: {last}; no file is left")
    got = np.load(made)
    name = f"{script.stem} is rejected, no file is left"
    if got.shape != expected.shape or not np.isfinite(got).all():
        raise MeasureError(f"{name}: outputs {got.shape} for {expected.shape}, or some that are no numbers")
    each = np.abs(got - expected).max(1) / np.abs(expected).max(1).clip(1e-12)
    facts: dict[str, Any] = {"difference": float(each.max()), "images": len(images), "real_images": data is not None}
    facts["agreement"] = float((got.argmax(1) == expected.argmax(1)).mean())
    if labels is not None:
        facts |= {"accuracy": float((got.argmax(1) == labels).mean())}
        facts |= {"fp32_accuracy": float((expected.argmax(1) == labels).mean())}
    if precision == INT8:
        drop = facts["fp32_accuracy"] - facts["accuracy"]
        if drop > max_drop:
            raise MeasureError(
                f"{name}: int8 has {facts['accuracy']:.2%} accuracy on {len(images)} images, PyTorch in fp32 "
                f"{facts['fp32_accuracy']:.2%}, a drop over {max_drop:.2%}; nas evaluate --sensitivity says where from"
            )
    elif (each > TOLERANCES[precision]).sum() > len(
        each
    ) // 16:  # where tokens are kept by rank, near ties fall either way
        raise MeasureError(
            f"{name}: outputs differ from PyTorch's by {each.max():.2g} of the largest, over {TOLERANCES[precision]:g}"
        )
    return facts


def _images(sides: tuple[int, int, int], data: Data | None, count: int) -> tuple[torch.Tensor, np.ndarray | None]:
    """Images (N, C, H, W) with labels (N,): validation images, or random ones without labels."""
    if data is None:
        return example_inputs([Shape(FEW_IMAGES, *sides)])[0], None
    parts = []
    for images, labels in data.val.batches(FEW_IMAGES):
        parts.append((images, labels))
        if sum(len(each) for _, each in parts) >= count:
            break
    return torch.cat([each for each, _ in parts])[:count], torch.cat([each for _, each in parts])[:count].numpy()


def _by_backend(network: Network, kind: Format, precision: str, calibration: Calibration, path: Path) -> None:
    backend = load_backend(kind.runtime)(1, precision, None, calibration)
    assert isinstance(backend, FileBackend)
    backend.convert(deployed(network), [input_shape_of(network.arch)], path)


def _write(network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts) -> None:
    """A format without room for anything else."""
    _by_backend(network, kind, precision, calibration, path)


def _write_onnx(
    network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts
) -> None:
    import onnx

    _by_backend(network, kind, precision, calibration, path)
    model = onnx.load(str(path))
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, str(path))


def _write_openvino(
    network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts
) -> None:
    from nas.profiling.device.loaders.openvino import core

    core()  # keeps OpenVINO from sending usage data
    import openvino

    plain = path.with_name("plain.onnx")
    _by_backend(network, kind, precision, calibration, plain)
    model = openvino.Core().read_model(str(plain))
    for key, value in about.items():
        model.set_rt_info(json.dumps(value), ["model_info", key])
    openvino.save_model(model, str(path), compress_to_fp16=False)
    plain.unlink()


def _write_ncnn(
    network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts
) -> None:
    from nas.profiling.backends.ncnn import GRAPH, WEIGHTS

    archive = path.with_name("archive.zip")
    _by_backend(network, kind, precision, calibration, archive)
    second = kind.second(path)
    assert second is not None
    with zipfile.ZipFile(archive) as files:
        path.write_bytes(files.read(GRAPH))
        second.write_bytes(files.read(WEIGHTS))
    archive.unlink()


def _write_pt2(
    network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts
) -> None:
    program = torch.export.export(deployed(network), example_inputs([input_shape_of(network.arch)]))
    torch.export.save(program, str(path), extra_files={PASSPORT: json.dumps(about)})


def _write_safetensors(
    network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts
) -> None:
    write_safetensors(path, network, dict(about))


def _write_coreml(
    network: Network, kind: Format, precision: str, calibration: Calibration, path: Path, about: Facts
) -> None:
    raise MeasureError("coreml files are not written yet: nobody here could check one")


def _script(kind: Format, precision: str, file: str, arch: Arch, passport: Facts) -> str:
    """The source of the script of a file."""
    return SCRIPT.format(
        file=file,
        needs=kind.needs,
        classes=json.dumps(list(passport.get("class_names") or ()), ensure_ascii=False),
        mean=passport.get("mean"),
        std=passport.get("std"),
        crop=passport.get("crop_share"),
        shape=tuple(arch.input_shape),
        half=precision == "fp16",
        load=kind.load.strip("\n"),
    )


SCRIPT = '''\
"""Runs {file}: python {file}.py IMAGE ...

It prints a JSON line for each image. A .npy file holds images as the network takes them, float32 (N, C, H, W); with
--out FILE.npy the outputs are written, (N, classes). Needs: pip install {needs} numpy pillow
"""

import json
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().with_name({file!r})
SHAPE = {shape}  # channels, height, width
CLASSES = {classes}
MEAN, STD = {mean}, {std}  # of each channel, of values in 0..1; None: not known
CROP = {crop}  # share of the shorter side that is shown; None: the whole image
HALF = {half}


{load}


def prepare(name):
    """An image file as the network takes it, (1, C, H, W)."""
    from PIL import Image

    if MEAN is None:
        sys.exit("how images are normalised was not recorded; give a .npy of normalised ones")
    channels, height, width = SHAPE
    image = Image.open(name).convert("L" if channels == 1 else "RGB")
    if CROP is None:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    else:
        factor = max(height, width) / CROP / min(image.size)
        image = image.resize([round(side * factor) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    values = np.asarray(image, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
    mean, std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (MEAN, STD))
    return np.ascontiguousarray((values - mean) / std, np.float32)[None]


def main(names, out=None):
    infer = load(FILE)
    every = []
    for name in names:
        for image in np.load(name) if name.endswith(".npy") else prepare(name):
            logits = np.asarray(infer(np.ascontiguousarray(image[None])), np.float32).reshape(-1)
            every.append(logits)
            if out is None:
                best, shares = int(logits.argmax()), np.exp(logits - logits.max())
                said = {{"image": name, "class": CLASSES[best] if CLASSES else best}}
                print(json.dumps(said | {{"probability": round(float(shares[best] / shares.sum()), 4)}}))
    if out is not None:
        np.save(out, np.stack(every))


if __name__ == "__main__":
    given = sys.argv[1:]
    place = given.index("--out") if "--out" in given else len(given)
    if not given[:place]:
        sys.exit(__doc__)
    main(given[:place], *given[place + 1 :])
'''

ONNX = """
def load(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]
"""
OPENVINO = """
def load(path):
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}  # it takes bf16 by itself where the CPU is quick at it
    compiled = openvino.Core().compile_model(str(path), "CPU", hint)
    return lambda image: compiled(image)[0]
"""
NCNN = """
def load(path):
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = HALF
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        sys.exit(f"ncnn cannot load {path}")
    entry = next(layer for layer in net.layers() if layer.type == "Input")
    name = net.blobs()[entry.tops[0]].name

    def infer(image):
        extractor = net.create_extractor()
        extractor.input(name, ncnn.Mat(image[0]).clone())
        return np.array(extractor.extract("out0")[1])

    return infer
"""
LITERT = """
def load(path):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    return lambda image: runner(args_0=image)["output_0"]
"""
EXECUTORCH = """
def load(path):
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path.read_bytes()).load_method("forward")
    return lambda image: method.execute([torch.from_numpy(image)])[0].numpy()
"""
PT2 = """
def load(path):
    import torch

    module = torch.export.load(str(path)).module()
    return lambda image: module(torch.from_numpy(image)).detach().numpy()
"""
SAFETENSORS = """
def load(path):
    import torch

    from nas import Arch, build
    from nas.evaluation.checkpoint import read_passport, read_weights

    network = build(Arch.from_json(json.dumps(read_passport(path)["arch"])))
    network.load_state_dict(read_weights(path))
    network.eval().requires_grad_(False)
    return lambda image: network(torch.from_numpy(image)).numpy()
"""

#: by name; presence is what `nas export --format` takes
FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", ("fp32", "int8"), "onnxruntime", ONNX, _write_onnx),
    "openvino": Format(".xml", "openvino", ("fp32", "int8"), "openvino", OPENVINO, _write_openvino, ".bin"),
    "ncnn": Format(".ncnn.param", "ncnn", ("fp32", "fp16"), "ncnn", NCNN, _write_ncnn, ".bin"),
    "litert": Format(".tflite", "litert", ("fp32",), "ai-edge-litert", LITERT, _write),
    "executorch": Format(".pte", "executorch", ("fp32",), "executorch", EXECUTORCH, _write),
    "coreml": Format(".mlpackage", "coreml", ("fp32",), "coremltools", "", _write_coreml),
    "pt2": Format(".pt2", "", ("fp32",), "torch", PT2, _write_pt2),
    "safetensors": Format(".safetensors", "", ("fp32",), "millinas", SAFETENSORS, _write_safetensors),
}


def default_name(name: str, format: str, precision: str) -> str:
    """The name of a file that none is given for: `l1.onnx`, `l1-int8.onnx`."""
    suffix = FORMATS[format].suffix if format in FORMATS else f".{'py' if format == 'python' else format}"
    return f"{name}{'' if precision == 'fp32' else f'-{precision}'}{suffix}"
