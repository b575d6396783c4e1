"""Networks as backbones, against timm's feature extraction and by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.ops import Add, Block, Conv, Linear, Mean, Shape
from nas.core.tracing import fuse_in_place, trace
from nas.networks.building import Network, build, fuse, load_weights
from nas.networks.features import FeatureNetwork, stage_maps
from search_spaces import efficientformer as ef
from tests.small import randomize

SMALL = ef.make((16, 32, 48, 64), (1, 1, 2, 2), 3, side=32, classes=10, stem_convs=1)


@pytest.fixture
def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_maps_equal_those_of_timms_feature_extraction_under_the_same_weights():
    arch = ef.PRESETS["efficientformer-l1"]
    theirs, ours = randomize(timm.create_model("efficientformer_l1")), build(arch, features_only=True)
    info = timm.create_model("efficientformer_l1", features_only=True).feature_info
    assert ours.feature_info.channels() == info.channels() == [48, 96, 224, 448]
    assert ours.feature_info.reduction() == info.reduction() == [4, 8, 16, 32]
    ours.load_state_dict(ef.from_timm(theirs.state_dict(), arch))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.double().eval().forward_intermediates(x, intermediates_only=True)
        got = ours.double().eval()(x)
    assert len(expected) == len(got) == 4
    for mine, reference in zip(got, expected, strict=True):
        assert mine.shape == reference.shape
        assert (mine - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_tokens_come_back_as_maps_in_raster_order(image):
    network, features = build(SMALL).eval(), build(SMALL, features_only=True).eval()
    seen = {}
    network.stages[2][-1].register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    with torch.no_grad():
        network(image)
        maps = features(image)
    assert seen["tokens"].shape == (2, 16, 48)
    assert torch.equal(maps[2][:, :, 1, 3], seen["tokens"][:, 1 * 4 + 3])
    assert features.feature_info.module_name() == ["stages.0.1", "stages.1.1", "stages.2.2", "stages.3.2"]


@pytest.mark.parametrize("side", [320, 256])
def test_a_backbone_for_larger_images_is_built_from_the_arch_with_another_input_shape(side):
    arch = dataclasses.replace(ef.make((16, 32, 48, 64), (1, 1, 1, 1), 1), input_shape=(3, side, side))
    maps = build(arch, features_only=True).eval()(torch.randn(1, 3, side, side))
    assert [tuple(found.shape) for found in maps] == [
        (1, c, side // stride, side // stride) for c, stride in ((16, 4), (32, 8), (48, 16), (64, 32))
    ]


def test_strides_are_whole_where_sides_are_rounded_up():
    arch = dataclasses.replace(SMALL, input_shape=(3, 75, 75))
    assert [(found.side, found.stride) for found in stage_maps(arch)] == [(38, 2), (19, 4), (10, 8), (5, 16)]


@pytest.mark.parametrize(("tail", "shape"), [(0, "1x3x32x64"), (1, "1x64x2x4")])
def test_images_that_are_not_square_are_refused(tail, shape):
    arch = ef.make((16, 32, 48, 64), (1, 1, 1, 1), tail, side=32, stem_convs=1)
    with pytest.raises(InputError, match=f"{shape} is not square"):
        build(dataclasses.replace(arch, input_shape=(3, 32, 64)), features_only=True)


def test_images_of_another_size_than_built_for_are_explained():
    network = build(SMALL, features_only=True).eval()
    with pytest.raises(InputError, match=r"built for images 3x32x32, got 3x48x48.*dataclasses\.replace"):
        network(torch.randn(1, 3, 48, 48))


def test_a_convolutional_network_takes_images_of_any_size():
    network = build(ef.make((16, 32, 48, 64), (1, 1, 1, 1), 0, side=32, stem_convs=1), features_only=True).eval()
    assert [found.shape[2:] for found in network(torch.randn(1, 3, 64, 32))] == [(32, 16), (16, 8), (8, 4), (4, 2)]


def test_out_indices_choose_maps_and_leave_out_the_stages_behind_them(image):
    whole = build(SMALL, seed=3)
    with torch.no_grad():
        every = FeatureNetwork(SMALL, list(whole.stages)).eval()(image)
        for asked, chosen in (((1, 2), (1, 2)), ((-1, 0), (0, 3)), (2, (2, 3)), ((1,), (1,)), (None, (0, 1, 2, 3))):
            network = FeatureNetwork(SMALL, list(whole.stages), asked).eval()
            assert len(network.stages) == chosen[-1] + 1
            assert network.feature_info.channels() == [(16, 32, 48, 64)[index] for index in chosen]
            got = network(image)
            assert all(torch.equal(mine, every[index]) for mine, index in zip(got, chosen, strict=True))
    for wrong in ((0, 4), (-5,), (), 5):
        with pytest.raises(InputError, match="the network has 4 maps, expected numbers from 0 to 3"):
            FeatureNetwork(SMALL, list(whole.stages), wrong)


def test_weights_of_the_whole_network_load_and_nothing_else_is_let_through():
    state = build(SMALL, seed=5).state_dict()
    for load in (lambda net, given: net.load_state_dict(given), lambda net, given: load_weights(net, given, "best.pt")):
        network = build(SMALL, features_only=True)
        load(network, state)
        own = network.state_dict()
        assert {name for name in state if not name.startswith("stages.4.")} == set(own)
        assert all(torch.equal(own[name], state[name]) for name in own)
        load(network, own)
        with pytest.raises((RuntimeError, InputError), match=r"stages\.0\.0\.body\.0\.body\.0\.weight"):
            load(network, {name: value for name, value in state.items() if not name.startswith("stages.0.0")})
        deeper = ef.make((16, 32, 48, 64), (1, 1, 2, 3), 4, side=32, classes=10, stem_convs=1)
        with pytest.raises((RuntimeError, InputError), match=r"stages\.3\.3"):
            load(network, build(deeper).state_dict())


def test_the_deployed_form_traces_strictly_and_gives_the_same_maps(image):
    network = randomize(build(SMALL, features_only=True)).double().eval()
    with torch.no_grad():
        expected, got = network(image.double()), fuse(network)(image.double())
    for mine, reference in zip(got, expected, strict=True):
        assert (mine - reference).abs().max() <= 1e-5 * reference.abs().max()
    with torch.device("meta"):
        bare = fuse_in_place(FeatureNetwork(SMALL, list(Network(SMALL).stages)))
    assert len(trace(bare, Shape(1, 3, 32, 32))) == sum(map(len, SMALL.stages[:-1]))


@dataclass(frozen=True)
class FeatureTestStem(Block):
    """Image -> map, and its mean as a second stream."""

    cout: int
    gives = ("x", "z")

    def build(self, x: Shape) -> nn.Module:
        return _Both(Conv(x.channels, self.cout, 3, 2).module(), Mean().module())


class _Both(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        y = self.first(x)
        return y, self.second(y)


@dataclass(frozen=True)
class FeatureTestAside(Block):
    """A linear map of the second stream alone."""

    takes = gives = ("z",)

    def build(self, z: Shape) -> nn.Module:
        return Linear(z.channels, z.channels).module()


@dataclass(frozen=True)
class FeatureTestMeet(Block):
    """Adds the second stream, a vector (N, C), to a map (N, C, H, W)."""

    takes = ("x", "z")

    def build(self, x: Shape, z: Shape) -> nn.Module:
        return _Meet()


class _Meet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add = Add().module()

    def forward(self, x, z):
        return self.add(x, z[:, :, None, None])


@dataclass(frozen=True)
class FeatureTestDown(Block):
    """3x3 convolution of stride 2."""

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, x.channels, 3, 2).module()


def test_a_block_that_no_map_depends_on_is_left_out_and_every_weight_learns():
    down, aside, meet = FeatureTestDown(), FeatureTestAside(), FeatureTestMeet()
    stages = ((FeatureTestStem(4), aside), (meet,), (down, down, meet, aside), (FeatureTestAside(),))
    arch = Arch("none", (3, 16, 16), 4, stages)
    found = [(each.place, each.side, each.stride) for each in stage_maps(arch)]
    assert found == [((1, 0), 8, 2), ((2, 0), 4, 4), ((2, 2), 2, 8)]  # one of two stages of one side; two in one stage
    network = build(arch, features_only=True)
    assert [list(stage) for stage in network.stages] == [["0", "1"], ["0"], ["0", "1", "2"]]
    sum(each.square().sum() for each in network(torch.randn(2, 3, 16, 16))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    network.load_state_dict(build(arch).state_dict())
    early = FeatureNetwork(arch, list(build(arch).stages), (1,))
    assert [list(stage) for stage in early.stages] == [["0", "1"], ["0"], ["0"]]
    first = FeatureNetwork(arch, list(build(arch).stages), (0,))
    assert [list(stage) for stage in first.stages] == [["0", "1"], ["0"]]
