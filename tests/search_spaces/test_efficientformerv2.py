"""EfficientFormerV2 against its published counts and against timm's implementation of it."""

from __future__ import annotations

import functools
import warnings

import pytest
import timm
import torch
from timm.models.efficientformer_v2 import EfficientFormerV2

from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError
from nas.core.ops import Shape
from nas.core.tracing import NOT_COUNTED
from nas.networks.building import build, cost_of, fuse
from nas.networks.export import check_onnx, export
from nas.networks.weights import slices
from search_spaces import efficientformerv2 as ef
from tests.small import assert_close, lively

# published (arXiv:2212.08059): parameters in millions, GMACs
PUBLISHED = {"s0": (3.5, 0.40), "s1": (6.1, 0.65), "s2": (12.6, 1.25), "l": (26.1, 2.56)}
SIZES = list(PUBLISHED)


def theirs(size):
    return lively(timm.create_model(f"efficientformerv2_{size}"))


def images(side, count=2):
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def macs_by_fvcore(model, side):
    """Multiply-adds of convolutions, linears and matrix products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 3, side, side))
    for name in NOT_COUNTED:
        analysis.set_op_handle(f"aten::{name}", lambda inputs, outputs: 0)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


@pytest.mark.parametrize("size", SIZES)
def test_presets_have_timms_counts_and_the_published_ones(size):
    model, cost = theirs(size), cost_of(ef.PRESETS[f"efficientformerv2-{size}"])
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())
    assert cost.macs == macs_by_fvcore(model, 224)
    params, macs = PUBLISHED[size]
    assert cost.params == pytest.approx(1e6 * params, rel=0.03)
    assert cost.macs == pytest.approx(1e9 * macs, rel=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_outputs_equal_timms_under_the_same_weights(size):
    model, arch = theirs(size), ef.PRESETS[f"efficientformerv2-{size}"]
    ours = build(arch)
    ours.load_state_dict(ef.from_timm(model.state_dict(), arch))  # strict: every tensor has its place
    model, ours, x = model.double().eval(), ours.double().eval(), images(224, 1)
    with torch.no_grad():
        expected = model(x)
        for form in (ours, fuse(ours)):
            assert_close(form(x), expected, 1e-12)


@functools.cache
def small():
    """timm's implementation and ours at a small size, with weights of their own in every place."""
    widths, depths, ratios = (16, 24, 32, 48), (1, 1, 3, 2), (2, 3, (4, 2, 3), (3, 4))
    model = lively(EfficientFormerV2(depths, img_size=64, embed_dims=widths, mlp_ratios=ratios, num_vit=2))
    arch = ef.make(widths, depths, 2, ratios=ratios, side=64)
    ours = build(arch)
    ours.load_state_dict(ef.from_timm(model.state_dict(), arch))
    return model.double(), ours.double()


def test_training_equals_timms():
    """Outputs by the statistics of the batch, and the gradient of every weight."""
    model, ours = small()
    arch, x = ours.arch, images(64, 4)
    expected = model.train()(x)
    labels, teacher = ours.train()(x)
    assert_close((labels + teacher) / 2, expected, 1e-10)
    expected.square().sum().backward()
    ((labels + teacher) / 2).square().sum().backward()
    gradients = ef.from_timm({name: each.grad for name, each in model.named_parameters()}, arch)
    largest = max(each.abs().max() for each in gradients.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-10 * largest


def test_every_block_has_an_expansion_of_its_own():
    _, ours = small()
    hidden = [stage[number].block.ratio for stage in list(ours.stages)[:4] for number in range(1, len(stage))]
    assert hidden == [2, 3, 4, 2, 3, 3, 4]
    with pytest.raises(InputError, match=r"stage 3 has 3 blocks, got 2 ratios: \(4, 2\)"):
        ef.make((16, 24, 32, 48), (1, 1, 3, 2), 2, ratios=(2, 3, (4, 2), 3))


def test_shapes_of_the_two_kinds_of_attention():
    arch = ef.PRESETS["efficientformerv2-s0"]
    calls = [call for call in calls_of(arch) if any("Attention" in str(op.row) for op in call.ops)]
    (strided, *_, down, _, full) = calls
    shown = [[str(op.outputs[0]) for op in call.ops][:4] for call in (strided, down, full)]
    assert shown[0][:3] == ["1x96x7x7", "1x1024x14x14", "1x96x14x14"]
    assert shown[1] == ["1x512x7x7", "1x176x7x7", "1x176x7x7", "1x176x7x7"]
    assert shown[2][:2] == ["1x1024x7x7", "1x176x7x7"]


@pytest.mark.parametrize("side", [72, 80])
def test_sides_that_halving_does_not_divide(side, tmp_path):
    """Where timm has no network: a map of side 5 is attended at 3 and comes back as 5, and goes on as 3."""
    arch = ef.make((8, 16, 24, 32), (1, 1, 1, 1), 1, side=side, classes=5)
    last = -(-side // 32)
    assert [str(call.outputs[0]) for call in calls_of(arch) if call.stage == "4"] == [f"1x32x{last}x{last}"] * 2
    network = lively(build(arch)).eval()
    x = images(side, 2)
    with torch.no_grad():
        assert_close(fuse(network.double())(x), network(x), 1e-10)
    file = export(network.float(), [Shape(1, 3, side, side)], tmp_path / "odd.onnx")
    assert check_onnx(file, network) <= 1e-4


def test_fewer_heads_and_narrower_mlps_are_slices():
    network = lively(build(ef.make((16, 24, 32, 48), (2, 2, 3, 3), 2, side=64, classes=5)))
    text = ef.make((16, 24, 32, 48), (1, 2, 2, 2), 2, ratios=(4, 3, 2, (3, 4)), side=64, classes=5).to_text()
    child = Arch.from_text(text.replace("heads=8", "heads=4"), "efficientformerv2", (3, 64, 64), 5)
    cut = slices(network, child)
    with torch.device("meta"):
        model = build(child)
    assert {key: value.shape for key, value in cut.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_step_of_the_waist_changes_the_expansion_of_one_block():
    space = ef.SPACE
    params = space.params_of(ef.PRESETS["efficientformerv2-s1"])
    assert {key: params[f"stage3.{key}"] for key in ("ratio", "waist", "start", "end", "attention")} == {
        "ratio": 4, "waist": 3, "start": 2, "end": 3, "attention": 2,
    }  # fmt: skip
    ratios = [[block.ratio for block in space.arch(params | {"stage3.end": end}).stages[2][1:]] for end in (2, 3)]
    assert [(a, b) for a, b in zip(*ratios, strict=True) if a != b] == [(3, 4)]


def test_weights_start_as_published():
    network = build(ef.PRESETS["efficientformerv2-s0"])
    state = network.state_dict()
    assert not any(value.any() for name, value in state.items() if name.endswith("attention.0.body.bias"))
    scales = torch.cat([value for name, value in state.items() if name.endswith("gamma")])
    assert scales.unique().tolist() == pytest.approx([1e-5])
    head = state["stages.4.1.body.body.heads.0.weight"]
    assert head.std().item() == pytest.approx(0.02, rel=0.02)
