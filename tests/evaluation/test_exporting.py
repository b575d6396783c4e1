"""Files of networks, each run by the script beside it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import nas
from nas.core.errors import InputError, MeasureError
from nas.evaluation import exporting
from nas.evaluation.checkpoint import write_weights
from nas.evaluation.data import load_data
from nas.evaluation.exporting import FORMATS, default_name, export_arch
from nas.networks.building import build
from search_spaces.efficientformer import make
from tests.small import lively

ARCH = make((16, 24, 32, 48), (1, 1, 1, 2), 1, side=32, classes=10, stem_convs=1)
LIMIT = 100
HERE = [name for name, kind in FORMATS.items() if name != "coreml"]
PACKAGES = {"litert": "litert_torch", "executorch": "executorch", "pt2": "torch", "safetensors": "safetensors"}
WITHOUT_TORCH = {"onnx", "openvino", "ncnn", "litert"}
BLOCKED = "import runpy, sys; sys.modules.update({name: None for name in %r}); sys.argv = sys.argv[1:]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    write_weights(file, lively(build(ARCH)).eval())
    return str(file)


@pytest.fixture(scope="module")
def network(weights):
    model = build(ARCH).eval()
    model.load_state_dict(torch.load(weights))
    return model


def ran(script, *arguments, blocked=("nas",)):
    command = [sys.executable, "-c", BLOCKED % (tuple(blocked),), str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", HERE)
def test_a_script_runs_its_file_with_the_runtime_alone(name, weights, network, tmp_path):
    package = PACKAGES.get(name, FORMATS[name].runtime)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package} here")
    file = tmp_path / default_name("net", name, "fp32")
    facts = export_arch(ARCH, file, name, weights, data="digits", limit=LIMIT)
    assert facts["bytes"] == file.stat().st_size
    assert facts["real_images"]
    images = np.random.default_rng(5).normal(size=(3, *ARCH.input_shape)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    blocked = ("nas", "search_spaces", *(["torch"] if name in WITHOUT_TORCH else [])) if name != "safetensors" else ()
    ran(facts["script"], tmp_path / "images.npy", "--out", tmp_path / "outputs.npy", blocked=blocked)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, atol=2e-3 * np.abs(expected).max())


def test_a_file_and_its_script_say_what_a_picture_is_taken_as(weights, network, tmp_path):
    facts = export_arch(ARCH, tmp_path / "net.onnx", "onnx", weights, data="digits", limit=LIMIT)
    data = load_data("digits", ARCH.input_shape, limit=LIMIT)
    said = {each.key: json.loads(each.value) for each in onnx.load(str(tmp_path / "net.onnx")).metadata_props}
    assert said["class_names"] == list(data.passport["class_names"])
    assert said["mean"] == pytest.approx(data.passport["mean"])
    assert said["arch"] == json.loads(ARCH.to_json())
    assert said["nas"] == nas.__version__
    grey = np.random.default_rng(1).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    line = json.loads(ran(facts["script"], tmp_path / "a.png", blocked=("nas", "torch")))
    pixels = torch.from_numpy(np.repeat(grey[None], 3, 0)).float() / 255
    mean, std = (torch.tensor(data.passport[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        shares = network(((pixels - mean) / std)[None]).softmax(1)[0]
    assert line["class"] == data.passport["class_names"][int(shares.argmax())]
    assert line["probability"] == pytest.approx(float(shares.max()), abs=1e-3)


def test_a_file_that_computes_something_else_does_not_stay(weights, tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_text("before")
    monkeypatch.setattr(exporting, "SCRIPT", exporting.SCRIPT.replace("infer(np", "1.01 * infer(np"))
    with pytest.raises(MeasureError, match=r"net.onnx is rejected, no file is left: outputs differ .* by 0.01"):
        export_arch(ARCH, tmp_path / "net.onnx", "onnx", weights)
    monkeypatch.setattr(exporting, "SCRIPT", "raise SystemExit('no such runtime')")
    with pytest.raises(MeasureError, match="its script fails with 1: no such runtime; no file is left"):
        export_arch(ARCH, tmp_path / "net.onnx", "onnx", weights)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "before"


def test_int8_is_made_with_images_and_accepted_by_its_accuracy(weights, tmp_path):
    with pytest.raises(InputError, match=r"int8 is made with real images.*--data"):
        export_arch(ARCH, tmp_path / "net.onnx", "onnx", weights, precision="int8")
    asked = {"precision": "int8", "data": "digits", "limit": LIMIT, "calibration_images": 12}
    facts = export_arch(ARCH, tmp_path / "net.onnx", "onnx", weights, max_drop=1.0, **asked)
    assert facts["calibration_images"] == 12
    nodes = {node.op_type for node in onnx.load(str(tmp_path / "net.onnx")).graph.node}
    assert "QuantizeLinear" in nodes
    with pytest.raises(MeasureError, match=r"other.onnx is rejected, .* a drop over -100.00%"):
        export_arch(ARCH, tmp_path / "other.onnx", "onnx", weights, max_drop=-1.0, **asked)
    assert not (tmp_path / "other.onnx").exists()


def test_what_cannot_be_exported_is_refused(weights, tmp_path):
    with pytest.raises(InputError, match="unknown format 'onxn', did you mean 'onnx'"):
        export_arch(ARCH, tmp_path / "net", "onxn")
    with pytest.raises(InputError, match="format litert: unknown precision 'int8'"):
        export_arch(ARCH, tmp_path / "net", "litert", precision="int8")
    with pytest.raises((InputError, MeasureError), match="coreml"):
        export_arch(ARCH, tmp_path / "net", "coreml", weights)
    assert not list(tmp_path.iterdir())
