"""Networks judged as a runtime runs them."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import pytest
import torch

from nas.core.errors import InputError, MeasureError
from nas.evaluation.data import load_data
from nas.evaluation.deployment import Deployed, Deployment, evaluate_arch, sensitivity_text
from nas.evaluation.metrics import evaluate
from nas.networks.building import build, with_classes
from nas.profiling.backends import load_backend
from nas.search.trained import load_trained
from search_spaces import load
from search_spaces.efficientformer import make
from tests.small import lively

ARCH = make((16, 24, 32, 48), (1, 1, 1, 2), 1, side=32, classes=10, stem_convs=1)
LIMIT, CALIBRATION = 100, 12


@pytest.fixture(scope="module")
def data():
    return load_data("digits", ARCH.input_shape, limit=LIMIT)


@pytest.fixture(scope="module")
def network():
    return lively(build(ARCH)).eval()


@pytest.fixture(scope="module")
def deployment(network, data):
    return Deployment(network, data, calibration_images=CALIBRATION)


@pytest.fixture(scope="module")
def quantized(deployment, tmp_path_factory):
    """int8 of the network, and its file."""
    file = tmp_path_factory.mktemp("int8") / "model.onnx"
    return deployment.judge("onnxruntime", "int8", file=file), file


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "ncnn", "torch"])
def test_fp32_is_pytorchs_accuracy(deployment, network, data, runtime):
    pytest.importorskip(runtime)
    found = deployment.judge(runtime)
    right = evaluate(network, data.val)
    assert found.images == right.n == len(data.val)
    assert found.accuracy == found.fp32_accuracy == pytest.approx(right.accuracy)
    assert (found.agreement, found.drop, found.calibration_images) == (1.0, 0.0, None)
    assert found.difference < 1e-4
    assert (found.bytes is None) == (runtime == "torch")


def test_int8_takes_its_ranges_from_training_images(quantized, data):
    found, file = quantized
    images = next(iter(data.train.batches(CALIBRATION)))[0].numpy()
    graph = onnx.load(file).graph
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input0")
    scale = next(onnx.numpy_helper.to_array(each) for each in graph.initializer if each.name == first.input[1])
    assert float(scale) == pytest.approx((images.max() - images.min()) / 255, rel=1e-5)
    assert found.calibration_images == CALIBRATION
    assert 1e-4 < found.difference < 0.2
    assert found.bytes == file.stat().st_size


def neighbours_are_exact(file, kind):
    """Whether no node of a kind reads or gives a rounded tensor."""
    graph = onnx.load(file).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    readers = {name: node.op_type for node in graph.node for name in node.input}
    nodes = [node for node in graph.node if node.op_type == kind]
    assert nodes
    return not any(
        makers.get(node.input[0]) == "DequantizeLinear" or readers.get(node.output[0]) == "QuantizeLinear"
        for node in nodes
    )


@pytest.mark.parametrize(
    ("kind", "op"), [("softmax", "Softmax"), ("GELU", "Gelu"), ("layer norm", "LayerNormalization")]
)
def test_a_kind_that_is_kept_is_not_rounded_around_either(deployment, quantized, tmp_path, kind, op):
    found = deployment.judge("onnxruntime", "int8", kept=(kind,), file=tmp_path / "model.onnx")
    assert found.kept == (kind,)
    assert not neighbours_are_exact(quantized[1], op)
    assert neighbours_are_exact(tmp_path / "model.onnx", op)


def test_a_relu_that_rounding_stood_for_stays_where_an_addition_is_kept(rng):
    arch = with_classes(load("nextvit-32").sample(rng), 10)
    images = load_data("digits", arch.input_shape, limit=30)
    mixed = Deployment(lively(build(arch)), images, calibration_images=8)
    whole = mixed.judge("onnxruntime", "int8")
    assert mixed.judge("onnxruntime", "int8", kept=("addition",)).difference < 2 * whole.difference


def figures(accuracy, **others):
    values = {"runtime": "r 1", "precision": "int8", "images": 100, "fp32_accuracy": 0.9, "agreement": 1.0}
    values |= {"difference": 0.01, "bytes": 1, "calibration_images": 8}
    return Deployed(accuracy=accuracy, **(values | others))


def test_what_is_sensitive_is_told_in_words():
    whole = figures(0.80)
    assert whole.drop == pytest.approx(0.1)
    kinds = {"softmax": figures(0.88), "GELU": figures(0.81), "addition": figures(0.79)}
    assert sensitivity_text(whole, kinds).endswith("softmax +8.00%, GELU +1.00%")
    assert "no single kind" in sensitivity_text(whole, {"addition": figures(0.80)})
    assert "all or nothing" in sensitivity_text(whole, {})


def test_what_makes_no_sense_is_named(deployment, network, data, monkeypatch):
    with pytest.raises(InputError, match=r"ncnn: unknown precision 'int8'.*Known: fp16, fp32"):
        deployment.judge("ncnn", "int8")
    with pytest.raises(InputError, match="unknown runtime 'onnxrutime', did you mean 'onnxruntime'"):
        deployment.judge("onnxrutime")
    with pytest.raises(InputError, match="soft: not among what int8 reaches here: convolution, linear, attention"):
        deployment.judge("onnxruntime", "int8", kept=("soft",))
    with pytest.raises(InputError, match="softmax, but the precision is fp32; only int8 is mixed"):
        deployment.judge("onnxruntime", "fp32", kept=("softmax",))
    with pytest.raises(InputError, match="split: expected val or test, got 'train'"):
        Deployment(network, data, split="train")
    with pytest.raises(InputError, match="calibration images: expected at least 1, got 0"):
        Deployment(network, data, calibration_images=0)
    other = load_data("digits", (3, 16, 16), limit=20)
    with pytest.raises(InputError, match=r"takes images \(3, 32, 32\), the data gives \(3, 16, 16\)"):
        Deployment(network, other)
    with pytest.raises(InputError, match="the data has 10 classes"):
        Deployment(build(with_classes(ARCH, 3)), data)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(MeasureError, match=r"pip install 'millinas\[openvino\]'"):
        deployment.judge("openvino")


def test_outputs_that_are_no_numbers_are_refused(deployment, monkeypatch):
    session = type(load_backend("torch")().prepare(deployment.model, deployment.shapes))
    monkeypatch.setattr(session, "outputs", lambda self: (np.full((1, 10), np.nan, np.float32),))
    with pytest.raises(MeasureError, match="torch fp32: outputs are not finite on 20 images"):
        deployment.judge("torch")


def test_a_trained_folder_is_judged_with_its_own_weights_and_data(network, data, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "arch.json").write_text(ARCH.to_json())
    with pytest.raises(InputError, match="this training is not finished"):
        load_trained(str(tmp_path))
    (tmp_path / "result.json").write_text(json.dumps({"data": "digits", "seed": 0, "limit": LIMIT}))
    found = load_trained(str(tmp_path))
    assert (found.arch, found.weights, found.data, found.limit) == (ARCH, str(tmp_path), "digits", LIMIT)
    assert load_trained(str(tmp_path), data="cifar10").data == "cifar10"
    facts = evaluate_arch(found.arch, found.weights, found.data, limit=found.limit, images=7, latency=False)
    assert (facts["images"], facts["split"], facts["data_fingerprint"]) == (7, "val", data.fingerprint)
    assert json.loads(json.dumps(facts)) == facts
    with pytest.raises(InputError, match="sensitivity: of int8 only"):
        evaluate_arch(found.arch, found.weights, found.data, sensitivity=True)
    state = {name: value[:3] if value.shape[:1] == (10,) else value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "three.pt")
    with pytest.raises(InputError, match="take weights for these classes"):
        evaluate_arch(ARCH, str(tmp_path / "three.pt"), "digits", limit=LIMIT, latency=False)
