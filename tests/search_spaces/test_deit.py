"""DeiT against its published counts, the closed forms of a plain ViT and timm's implementation of it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from nas.core.errors import InputError
from nas.core.ops import Residual, Row, Shape
from nas.core.tracing import calls_of_unit, macs_of_op
from nas.evaluation.teacher import Teacher, start_from
from nas.networks.building import Network, build, cost_of, fuse, load_arch
from nas.networks.weights import slices
from search_spaces import deit
from tests.small import assert_close, lively

# parameters of timm 1.0.31, and fvcore's MACs of its linears, convolutions and matrix products, in millions
GOLDEN = {
    "deit-t": (5_717_416, (1045.95, 28.90, 178.83)),
    "deit-s": (22_050_664, (4183.42, 57.80, 357.66)),
    "deit-b": (86_567_656, (16732.90, 115.61, 715.33)),
}


def closed_form(width, depth, ratio=4, patch=16, side=224, classes=1000):
    """Parameters and MACs of a plain ViT with a class token."""
    patches = (side // patch) ** 2
    tokens = patches + 1
    layers = (4 + 2 * ratio) * width**2
    params = 3 * patch**2 * width + width + width + tokens * width
    params += depth * (layers + (4 + ratio + 1 + 4) * width) + 2 * width + (width + 1) * classes
    macs = 3 * side**2 * width + depth * (tokens * layers + 2 * tokens**2 * width) + width * classes
    return params, macs


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", GOLDEN)
def test_presets_have_the_published_counts(name):
    params, parts = GOLDEN[name]
    cost = cost_of(deit.PRESETS[name])
    assert cost.params == params
    assert cost.macs / 1e6 == pytest.approx(sum(parts), abs=0.02)
    assert (cost.params, cost.macs) == closed_form({"t": 192, "s": 384, "b": 768}[name[-1]], 12)


def test_the_host_of_256_channels_has_the_parameters_of_dynamicvits_sheet():
    cost = cost_of(deit.PRESETS["deit-256"])
    assert cost.params == 9_982_184
    assert (cost.params, cost.macs) == closed_form(256, 12)
    pruned = load_arch("dynamicvit-deit-256-0.7")
    student = build(pruned)
    start_from(Teacher("deit-256", build(deit.PRESETS["deit-256"], seed=1), deit.PRESETS["deit-256"], 224), student)
    assert cost_of(pruned).params - cost.params == 322_758  # its three predictors


@pytest.mark.parametrize(
    ("width", "depth", "more"),
    [
        (256, 12, {}),
        (320, 5, {"ratio": 3, "side": 320}),
        (96, 2, {"ratio": 2, "patch": 4, "side": 32, "classes": 10}),
        (128, 3, {"patch": 8, "side": 64}),
    ],
)
def test_other_sizes_equal_the_closed_form(width, depth, more):
    cost = cost_of(deit.make(width, depth, **more, head_dim=32))
    assert (cost.params, cost.macs) == closed_form(width, depth, **more)


def check_against_timm(arch, name, **changes):
    theirs = lively(timm.create_model(name, **changes)).double().eval()
    ours = Network(arch).double().eval()
    ours.load_state_dict(deit.from_timm(theirs.state_dict(), arch))  # strict: every tensor has its place
    x = torch.randn(2, *arch.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
        for model in (ours, fuse(ours)):
            assert_close(model(x), expected)


def test_outputs_equal_timms_at_the_published_size():
    check_against_timm(deit.PRESETS["deit-t"], deit.TIMM["deit-t"])


@pytest.mark.parametrize(("name", "width"), [("deit-s", 384), ("deit-b", 768)])
def test_blocks_of_the_larger_presets_equal_timms_on_small_images(name, width):
    arch = deit.make(width, 2, side=64)
    assert set(arch.stages[0]) == set(deit.PRESETS[name].stages[0])
    check_against_timm(arch, deit.TIMM[name], depth=2, img_size=64)


def test_every_preset_says_what_timm_calls_it():
    assert deit.TIMM.keys() == deit.PRESETS.keys()
    for preset, name in ((preset, name) for preset, name in deit.TIMM.items() if name is not None):
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        assert params == cost_of(deit.PRESETS[preset]).params


def test_patches_become_tokens_row_by_row_behind_the_class_token(generator):
    image = torch.randn(1, 3, 8, 12, generator=generator)
    embed, positions = deit.Patchify(3, 5, 4).body(), deit.ClassAndPositions(5, 6).body()
    with torch.no_grad():
        tokens = positions(embed(image))
        for number, (top, left) in enumerate([(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)], 1):
            patch = image[0, :, top : top + 4, left : left + 4].flatten()
            expected = embed.conv.weight.flatten(1) @ patch + embed.conv.bias + positions.positions[0, number]
            assert_close(tokens[0, number], expected)
        assert torch.equal(tokens[0, 0], (positions.token + positions.positions)[0, 0])
    assert deit.PatchTokens.prefix_tokens == 1


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(InputError, match="side 200"):
        build(deit.make(64, 1, side=200))


def test_a_width_that_is_no_multiple_of_a_head_is_refused():
    with pytest.raises(InputError, match="96 channels are no multiple of head_dim=64"):
        build(deit.make(96, 1))


def test_attention_counts_both_matrix_products():
    row = Row(deit.Attention(32, 4), (Shape(1, 10, 32),))
    assert macs_of_op(row) == 4 * 10 * 32**2 + 2 * 10**2 * 32


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_of_attention_is_a_weighted_mean_of_values(bias, generator):
    body = lively(deit.Attention(4, 2, bias).body()).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=generator)
    qkv = nn.functional.linear(x[0], body.qkv.weight, body.qkv.bias)
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 4 * part + 2 * head : 4 * part + 2 * head + 2] for part in range(3))
        weights = (q @ k.T / 2**0.5).exp()
        heads.append(weights / weights.sum(1, keepdim=True) @ v)
    expected = nn.functional.linear(torch.cat(heads, 1), body.proj.weight, body.proj.bias)
    assert_close(body(x)[0], expected)
    assert_close(deit.Attention(4, 2, bias).fused(body)(x)[0], expected)


def test_a_masked_softmax_of_kept_tokens_is_a_softmax(generator):
    scores = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=generator)
    weights = deit.masked_softmax(scores, torch.ones(2, 5))
    assert (weights - scores.softmax(3)).abs().max() < 1e-6
    assert torch.allclose(weights.sum(3), torch.ones(2, 3, 5, dtype=torch.float64))


def test_a_hidden_token_is_seen_by_itself_only():
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    weights = deit.masked_softmax(scores[None, None], torch.tensor([[1.0, 1.0, 0.0]]))[0, 0]
    e = torch.e
    expected = [[1 / (1 + e), e / (1 + e), 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert (weights - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-4


def test_gradients_reach_the_mask():
    keep = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
    weights = deit.masked_softmax(torch.zeros(1, 1, 3, 3), keep)
    weights[0, 0, 0, 1].backward()
    assert keep.grad.tolist()[0][1] == pytest.approx(1 / 2, rel=1e-4)  # x / (2 + x), at x = 0


def test_a_damped_branch_adds_its_percentage_and_costs_nothing_deployed(generator):
    shape = Shape(1, 5, 32)
    whole, half = (deit.ViTBlock(2, 16, branch=branch) for branch in (100, 50))
    x = torch.randn(shape, generator=generator)
    modules = [lively(block.build(shape)).eval() for block in (whole, half)]
    modules[1].load_state_dict(modules[0].state_dict())
    with torch.no_grad():
        attended, expected = (module[0](x) for module in modules)
        assert_close(expected, x + (attended - x) / 2)
        assert_close(modules[1](x), expected + (modules[0][1](expected) - expected) / 2)
    ops = [[type(call.row.unit) for call in calls_of_unit(Row(block, (shape,))).ops] for block in (whole, half)]
    assert ops[0] == ops[1]
    assert deit.Damp not in ops[1]


def test_the_head_norms_the_class_token_alone():
    row = Row(deit.ClassToken(), (Shape(1, 197, 192),))
    (norm,) = calls_of_unit(row).ops
    assert norm.row.inputs == (Shape(1, 192),)
    assert norm.row.unit.eps == "1e-6"


def test_a_narrower_network_takes_the_leading_heads_of_q_k_and_v():
    large, small = (deit.make(width, 1, ratio=2, head_dim=16, patch=8, side=32) for width in (48, 32))
    network = build(large)
    name = "stages.0.1.body.0.body.1.body.qkv.weight"
    whole, cut = network.state_dict()[name], slices(network, small)[name]
    assert torch.equal(cut, torch.cat([whole[start : start + 32, :32] for start in (0, 48, 96)]))


def test_drop_path_reaches_both_branches_of_every_block():
    network = build(deit.make(32, 3, head_dim=16, patch=8, side=32), drop_path=0.2)
    rates = [part.drop_path for part in network.modules() if isinstance(part, Residual)]
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])


def test_every_width_of_the_space_is_one_of_whole_heads_and_rows_are_few():
    assert all(width % 64 == 0 for width in deit.SPACE.choices["stage1.width"].values)
    assert len(deit.SPACE.rows()) <= 200


def test_the_classifier_starts_as_vision_transformers_do():
    network = build(deit.make(64, 1, side=32, classes=100))
    linears = [part for part in network.modules() if isinstance(part, nn.Linear)]
    assert len(linears) == 5
    for linear in linears:
        assert linear.bias.abs().max() == 0
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
