"""Models of timm and torchvision as points: counted as their libraries count them, and timed like any network."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision import models

from nas.core.errors import InputError
from nas.networks.building import cost_of, load_arch
from nas.networks.foreign import Foreign, find
from nas.profiling.device.timing import Settings
from nas.profiling.probes import Probe
from nas.profiling.profiler import measure


@pytest.mark.parametrize("preset", ["mobilevit-s", "efficientformer-l1", "swin-t"])
def test_timms_models_cost_what_the_same_networks_of_ours_cost(preset):
    name = {"swin-t": "swin_tiny_patch4_window7_224"}.get(preset, preset.replace("-", "_"))
    arch = load_arch(preset)
    found = find(f"timm:{name}")
    assert found.input_shape == arch.input_shape
    cost, ours = found.cost(), cost_of(arch)
    assert cost.params == ours.params
    assert cost.macs == pytest.approx(ours.macs, rel=0.005)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18", "vit_b_16"])
def test_torchvisions_models_cost_what_it_says(name):
    said = models.get_model_weights(name).DEFAULT.meta
    cost = find(f"torchvision:{name}").cost()
    assert cost.params == said["num_params"]
    assert cost.macs / 1e9 == pytest.approx(said["_ops"], rel=0.03)  # GMACs, counted by fvcore, with pooling and norms


def test_sizes_of_images_are_those_asked_for_or_the_librarys():
    assert find("timm:mobilenetv3_large_100").input_shape == (3, 224, 224)
    assert find("timm:mobilevit_s").input_shape == (3, 256, 256)
    assert find("timm:mobilevit_s", "192").input_shape == (3, 192, 192)
    assert find("timm:mobilenetv3_large_100", "1x96x128").input_shape == (1, 96, 128)
    half = find("timm:mobilenetv3_large_100", "112").cost()
    assert half.macs < find("timm:mobilenetv3_large_100").cost().macs / 3
    assert find("timm:vit_tiny_patch16_224", "160").cost().macs > 0  # made for that size


def test_a_model_goes_to_other_processes_as_plain_data():
    probe = Probe.of(find("timm:mobilenetv3_small_050", "64"))
    assert Probe.from_data(json.loads(json.dumps(probe.to_data()))) == probe
    assert probe.key.startswith("model timm:mobilenetv3_small_050 @ 1x3x64x64 (timm ")
    assert probe.whole
    assert probe.weight_bytes == 4 * probe.model.cost().params
    module = probe.module(0)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    with torch.no_grad():
        assert torch.equal(module(torch.ones(1, 3, 64, 64)), probe.module(0)(torch.ones(1, 3, 64, 64)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_model_is_timed_in_fresh_processes(runtime):
    found = measure(find("timm:mobilenetv3_small_050", "32"), runtime=runtime, settings=Settings(rounds=2, passes=1))
    assert found.us > 0
    assert found.count >= 1  # a busy machine leaves fewer


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("mobilenetv3_large_100", None, "expected timm:NAME or torchvision:NAME"),
        ("keras:resnet", None, "expected timm:NAME or torchvision:NAME"),
        ("timm:mobilenetv3_larg_100", None, "did you mean .*'mobilenetv3_large_100'"),
        ("torchvision:resnet19", None, "did you mean .*'resnet18'"),
        ("torchvision:fcn_resnet50", None, "unknown model of torchvision"),  # no classifier
        ("timm:resnet18", "big", "expected a side such as 224"),
        ("timm:resnet18", "3x0x224", "each number is 1 to"),
    ],
)
def test_a_model_that_is_none_is_explained(name, size, message):
    with pytest.raises(InputError, match=message):
        find(name, size)


def test_a_size_that_a_model_does_not_take_is_explained():
    with pytest.raises(InputError, match=r"timm:vit_tiny_patch16_224: .*(img_size|does not take|does not make)"):
        Foreign("timm:vit_tiny_patch16_224", (3, 8, 8)).cost()
    with pytest.raises(InputError, match="takes images of 3 channels, not 1"):
        Foreign("torchvision:resnet18", (1, 64, 64)).cost()
