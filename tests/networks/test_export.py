from __future__ import annotations

import sys
from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from nas.core.errors import InputError, MeasureError
from nas.core.ops import Shape
from nas.networks.building import build, fuse
from nas.networks.export import check_onnx, deployed, example_inputs, export
from nas.profiling.probes import Probe
from tests.small import TINY, randomize

IMAGE = Shape(1, 3, 32, 32)


def nodes(path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture
def network(rng) -> nn.Module:
    return randomize(build(TINY.sample(rng))).eval()


def test_a_file_computes_what_its_model_does(tmp_path, network):
    path = export(network, [IMAGE], tmp_path / "new" / "model.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert 0 <= check_onnx(path, network) < 1e-4
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.input] == ["input0"]
    assert graph.output[0].name == "output0"
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_backbone_gives_every_map(tmp_path, rng):
    backbone = build(TINY.sample(rng), features_only=True).eval()
    path = export(backbone, (Shape(1, 3, 32, 32),), tmp_path / "backbone.onnx")
    names = [output.name for output in onnx.load(path).graph.output]
    assert names == [f"output{number}" for number in range(len(backbone.feature_info.channels()))]
    assert check_onnx(path, backbone) <= 1e-4


def test_gelu_is_one_node_and_norms_are_folded(tmp_path):
    (row,) = (row for row in TINY.rows() if str(row) == "MB4D ratio=2 @ 1x16x16x16")
    path = export(Probe((row,)).module(0), row.inputs, tmp_path / "block.onnx")
    found = nodes(path)
    assert onnx.load(path).opset_import[0].version >= 20
    assert found["Gelu"] == 1
    assert found["Erf"] == found["Tanh"] == found["BatchNormalization"] == 0
    assert found["Conv"] == 2


def test_a_model_is_left_as_it_is(tmp_path, network):
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export(network, [IMAGE], tmp_path / "model.onnx")
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(network.state_dict()) == len(before)


def test_a_file_of_other_weights_is_caught(tmp_path, network, rng):
    path = export(network, [IMAGE], tmp_path / "model.onnx")
    with torch.no_grad():
        next(network.parameters()).mul_(1.1)
    with pytest.raises(MeasureError, match=r"model\.onnx: outputs differ from PyTorch's by .* over 0\.0001"):
        check_onnx(path, network)
    assert check_onnx(path, network, tolerance=10.0) > 1e-4


def test_a_file_that_gives_nan_is_caught(tmp_path):
    path = export(nn.Sequential(nn.ReLU()), [Shape(1, 4)], tmp_path / "model.onnx")

    class Broken(nn.Module):
        def forward(self, x):
            return x / 0 * 0

    with pytest.raises(MeasureError, match="outputs differ from PyTorch's by nan"):
        check_onnx(path, Broken())


def test_an_export_that_fails_leaves_the_old_file(tmp_path, network, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def torn(model, inputs, target, **options):
        with open(target, "w") as file:
            file.write("half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch.onnx, "export", torn)
    with pytest.raises(RuntimeError, match="no space left"):
        export(network, [IMAGE], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_format_is_named(tmp_path, network):
    with pytest.raises(InputError, match="unknown format 'onx', did you mean 'onnx'"):
        export(network, [IMAGE], tmp_path / "model.onx", format="onx")


def test_checking_without_onnx_runtime_names_the_extra(tmp_path, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MeasureError, match=r"pip install 'millinas\[onnxruntime\]'"):
        check_onnx(tmp_path / "model.onnx", network)


def test_a_deployed_model_is_not_deployed_again(network):
    assert deployed(network) is not network
    folded = fuse(network)
    assert deployed(folded) is folded


def test_example_inputs_are_the_same_for_the_same_seed():
    first, second = example_inputs([IMAGE, Shape(1, 7)]), example_inputs([IMAGE, Shape(1, 7)])
    assert [tuple(x.shape) for x in first] == [(1, 3, 32, 32), (1, 7)]
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not torch.equal(first[0], example_inputs([IMAGE], seed=1)[0])
