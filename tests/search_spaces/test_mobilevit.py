"""MobileViT against its published counts, its closed forms, timm's implementation of v1 and v2, and v3 by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import timm
import torch
from timm.models import byobnet, mobilevit
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import calls_of, steps_of
from nas.core.blocks import divisible
from nas.core.errors import InputError
from nas.core.ops import Residual, Row, Shape
from nas.core.tracing import calls_of_unit, macs_of_op, macs_of_unit, params_of_unit
from nas.networks.building import Network, build, cost_of, fuse
from nas.networks.weights import slices
from search_spaces import mobilevit as mv
from tests.small import assert_close, lively

# parameters, and conv+linear+matmul MACs in millions and the digits published, at 256 pixels
GOLDEN = {
    "mobilevit-xxs": (1_272_024, "407.4"),
    "mobilevit-xs": (2_317_848, "1025.9"),
    "mobilevit-s": (5_578_632, "2000.8"),
    "mobilevitv2-0.5": (1_370_593, "464.6"),
    "mobilevitv2-0.75": (2_866_009, "1028.0"),
    "mobilevitv2-1.0": (4_901_841, "1812.1"),
    "mobilevitv2-1.25": (7_478_089, "2816.9"),
    "mobilevitv2-1.5": (10_594_753, "4042.5"),
    "mobilevitv2-1.75": (14_251_833, "5488.8"),
    "mobilevitv2-2.0": (18_449_329, "7155.8"),
    "mobilevitv3-xxs": (1_249_448, "332.2"),
    "mobilevitv3-xs": (2_490_360, "966.6"),
    "mobilevitv3-s": (5_763_912, "1832.7"),
    "mobilevitv3-xxs-l2": (1_145_288, "300.7"),
    "mobilevitv3-xs-l2": (2_257_320, "899.8"),
    "mobilevitv3-s-l2": (5_169_864, "1669.1"),
    "mobilevitv3-0.5": (1_429_985, "479.8"),
    "mobilevitv3-0.75": (2_999_641, "1062.2"),
    "mobilevitv3-1.0": (5_139_409, "1872.9"),
}
VERSIONS = ("v1", "v2", "v3", "v3-separable")
XXS = {"widths": (16, 24, 48, 64, 80), "dims": (64, 80, 96), "expand": 2}
TINY = {"widths": (16, 16, 16, 24, 32), "dims": (16, 24, 32), "layers": (1, 1, 1), "expand": 2, "classes": 10}


def inverted(cin, cout, e, before, after):
    """The sheet's parameters and MACs of an inverted residual between maps of these sides."""
    h = e * cin
    return cin * h + 2 * h + 11 * h + h * cout + 2 * cout, before**2 * cin * h + after**2 * (9 * h + h * cout)


def block(version, c, d, n_layers, patch, ratio, side):
    """The sheet's parameters and MACs of a MobileViT block, and the side of the map that goes out."""
    f, whole = ratio * d, -(-side // patch) * patch
    hw, tokens, n = side**2, whole**2, (whole // patch) ** 2
    softmaxed = 4 * d * d + 2 * d * f + 9 * d + f, tokens * (4 * d * d + 2 * d * f) + patch**2 * 2 * n * n * d
    # score, key and value; output; MLP; two norms
    separable = (2 * d + 1) * (d + 1) + d * d + d + 2 * d * f + f + d + 4 * d, tokens * (3 * d * d + d + 2 * d * f)
    params, macs = [n_layers * each for each in (softmaxed if version in ("v1", "v3") else separable)]
    if version == "v1":
        params += 9 * c * c + 2 * c + c * d + 2 * d + d * c + 2 * c + 18 * c * c + 2 * c
        return params, macs + hw * (27 * c * c + 2 * c * d), side
    if version == "v3":
        params += 11 * c + c * d + 2 * d + d * c + 2 * c + (c + d) * c + 2 * c
        return params, macs + hw * (9 * c + 2 * c * d + (c + d) * c), side
    last = d * c if version == "v2" else 2 * d * c
    return params + 11 * c + c * d + 2 * d + last + 2 * c, macs + tokens * (9 * c + c * d + last), whole


def closed_form(
    widths, dims, layers=(2, 4, 3), *, versions=("v1",) * 3, patches=(2,) * 3, ratios=(2,) * 3, expand=4, depth=2,
    stem=16, side=256, classes=1000
):  # fmt: skip
    """Parameters and MACs of the sheet's formulas, widths multiples of 8."""
    half, side = -(-side // 2), -(-side // 4)
    parts = [(27 * stem + 2 * stem, half**2 * 27 * stem), inverted(stem, widths[0], expand, half, half)]
    parts += [inverted(widths[0], widths[1], expand, half, side)]
    parts += [inverted(widths[1], widths[1], expand, side, side)] * depth
    cin = widths[1]
    for cout, *sizes in zip(widths[2:], versions, dims, layers, patches, ratios, strict=True):
        version, *rest = sizes
        after = -(-side // 2)
        parts.append(inverted(cin, cout, expand, side, after))
        *costs, side = block(version, cout, *rest, after)
        parts.append(costs)
        cin = cout
    features = min(4 * cin, 960) if versions[-1] in ("v1", "v3") else cin
    parts += [(cin * features + 2 * features, side**2 * cin * features)] * (versions[-1] in ("v1", "v3"))
    parts += [(features * classes + classes, features * classes)]
    return tuple(map(sum, zip(*parts, strict=True)))


def products(arch):
    """MACs without those that a counter may see in interpolation."""
    ops = (op.row for call in calls_of(arch) for op in call.ops)
    return sum(macs_of_op(row) for row in ops if not isinstance(row.unit, mv.Resize))


def images(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def in_small(preset, side):
    return replace(mv.PRESETS[preset], input_shape=(3, side, side))


# counts


def test_every_published_net_is_a_preset():
    assert mv.PRESETS.keys() == GOLDEN.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_presets_have_the_published_counts(name):
    params, macs = GOLDEN[name]
    cost = cost_of(mv.PRESETS[name])
    assert cost.params == params
    assert f"{cost.macs / 1e6:.1f}" == macs


def test_presets_equal_the_closed_form_to_the_unit():
    for name, arguments in {
        "mobilevit-xxs": XXS,
        "mobilevit-s": {"widths": (32, 64, 96, 128, 160), "dims": (144, 192, 240)},
        "mobilevitv3-s": {"widths": (32, 64, 128, 256, 320), "dims": (144, 192, 240), "versions": ("v3",) * 3},
        "mobilevitv3-xs-l2": {
            "widths": (32, 48, 96, 160, 160), "dims": (96, 120, 144), "layers": (2, 2, 3), "versions": ("v3",) * 3
        },
        "mobilevitv2-0.75": {
            "widths": (48, 96, 192, 288, 384), "dims": (96, 144, 192), "versions": ("v2",) * 3, "expand": 2,
            "depth": 1, "stem": 24,
        },
        "mobilevitv3-1.0": {
            "widths": (64, 128, 256, 384, 512), "dims": (128, 192, 256), "versions": ("v3-separable",) * 3,
            "expand": 2, "depth": 1, "stem": 32,
        },
    }.items():  # fmt: skip
        cost = cost_of(mv.PRESETS[name])
        assert (cost.params, cost.macs) == closed_form(**arguments), name


@pytest.mark.parametrize("seed", range(12))
def test_random_configurations_equal_the_closed_form(seed):
    rng = random.Random(seed)
    more = {
        "widths": [rng.choice([16, 24, 32, 40, 304]) for _ in range(5)],
        "dims": [rng.choice([16, 32, 48, 64]) for _ in range(3)],
        "layers": [rng.randint(1, 2) for _ in range(3)],
        "versions": [rng.choice(VERSIONS) for _ in range(3)],
        "patches": [rng.choice([1, 2, 4]) for _ in range(3)],
        "ratios": [rng.choice([1, 2, 3]) for _ in range(3)],
        "expand": rng.choice([2, 3, 4]),
        "depth": rng.randint(1, 3),
        "stem": rng.choice([8, 16]),
        "side": rng.choice([32, 64, 72, 96, 100, 112]),
        "classes": 10,
    }
    arch = mv.make(**more)
    assert (cost_of(arch).params, products(arch)) == closed_form(**more)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("xxs", [464, 1_472, 7_696, 139_888, 341_824, 433_440, 26_240, 321_000]),
        ("xs", [464, 3_968, 54_048, 297_152, 699_152, 840_432, 37_632, 385_000]),
        ("s", [464, 3_968, 86_528, 656_768, 1_772_032, 2_314_192, 103_680, 641_000]),
    ],
)
def test_the_parts_of_v1_have_the_published_parameters(size, expected):
    parts = dict.fromkeys(["SiluStem", "1", "2", "3", "4", "5", "WidenedMean", "Logits"], 0)
    for call in steps_of(mv.PRESETS[f"mobilevit-{size}"]):
        kind = type(call.row.unit).__name__
        parts[kind if kind in parts else call.stage] += params_of_unit(call.row)
    assert list(parts.values()) == expected


# timm


def check_against_timm(theirs, arch):
    """Outputs of training and deployed form under the weights of timm's model, which is on the meta device."""
    theirs = lively(theirs.to_empty(device="cpu")).double().eval()
    with torch.device("meta"):
        ours = Network(arch)
    ours.load_state_dict(mv.from_timm(theirs.state_dict(), arch), assign=True)  # strict: every tensor has its place
    x = images(1, *arch.input_shape)
    with torch.no_grad():
        expected = theirs(x)
        for model in (ours.eval(), fuse(ours)):
            assert_close(model(x), expected)


def timm_model(preset):
    with torch.device("meta"):  # nobody needs the first weights
        return timm.create_model(mv.TIMM.get(preset, preset.replace("-", "_")))


@pytest.mark.parametrize("preset", ["mobilevit-xxs", "mobilevitv2-0.5"])
def test_outputs_equal_timms_at_the_published_size(preset):
    check_against_timm(timm_model(preset), mv.PRESETS[preset])


@pytest.mark.parametrize("preset", [name for name in GOLDEN if "v3" not in name])
def test_outputs_equal_timms_where_the_last_map_is_odd(preset):
    """The last MobileViT block takes a map of side 3, or 4 after resizing."""
    check_against_timm(timm_model(preset), in_small(preset, 96))


@pytest.mark.parametrize(("version", "name"), [("v1", "mobilevit_xxs"), ("v2", "mobilevitv2_050")])
@pytest.mark.parametrize("patches", [(4, 2, 1), (2, 4, 4)])
def test_outputs_equal_timms_for_other_patches_and_depths(version, name, patches):
    layers, widths, dims = (1, 3, 2), (16, 24, 48, 64, 80), (64, 80, 96)
    convs = mobilevit._inverted_residual_block(d=1, c=16, s=1, br=2), mobilevit._inverted_residual_block(2, 24, 2, 2)
    make = mobilevit._mobilevit_block if version == "v1" else mobilevit._mobilevitv2_block
    blocks = [
        make(1, width, 2, **({"transformer_dim": dim} if version == "v1" else {}), transformer_depth=count, br=2)
        for width, dim, count in zip(widths[2:], dims, layers, strict=True)
    ]
    for (_, inner), patch in zip(blocks, patches, strict=True):
        inner.block_kwargs["patch_size"] = patch
    config = replace(mobilevit.model_cfgs[name], blocks=(*convs, *blocks), stem_chs=16)
    with torch.device("meta"):
        theirs = byobnet.ByobNet(config)
    dims = dims if version == "v1" else [width // 2 for width in widths[2:]]
    arch = mv.make(widths, dims, layers, versions=(version,) * 3, patches=patches, expand=2, depth=1, side=80)
    check_against_timm(theirs, arch)


def timm_v2(dims):
    """timm's v2 with transformers of so many channels, which it takes as they are."""
    widths = [2 * dim for dim in dims]
    convs = mobilevit._inverted_residual_block(d=1, c=16, s=1, br=2), mobilevit._inverted_residual_block(2, 24, 2, 2)
    blocks = [mobilevit._mobilevitv2_block(1, width, 2, transformer_depth=1) for width in widths]
    for (_, inner), dim in zip(blocks, dims, strict=True):
        inner.block_kwargs["transformer_dim"] = dim
    config = replace(mobilevit.model_cfgs["mobilevitv2_050"], blocks=(*convs, *blocks), stem_chs=16)
    with torch.device("meta"):
        theirs = byobnet.ByobNet(config)
    arch = mv.make((16, 24, *widths), dims, (1, 1, 1), versions=("v2",) * 3, expand=2, depth=1, side=64)
    return theirs, arch


def test_outputs_equal_timms_where_the_hidden_channels_of_mlps_need_no_rounding():
    check_against_timm(*timm_v2((24, 40, 56)))


def test_widths_where_timm_does_not_round_the_mlps_as_we_do_are_refused_by_name():
    theirs, arch = timm_v2((24, 36, 56))
    hidden = theirs.stages[3][1].transformer[0].mlp.fc1.out_channels
    with pytest.raises(InputError, match=rf"MobileViTv2 dim=36 .*timm's has {hidden} hidden channels"):
        mv.from_timm(theirs.state_dict(), arch)


def test_interpolation_has_no_macs():
    """The 3x3 map of the last block is resized to 4x4, which multiplies nothing that was learned."""
    block, x = mv.MobileViTv2(16, 1), Shape(1, 32, 3, 3)
    positions, c, d = 4 * 4, 32, 16
    attention = d * (1 + 2 * d) + d * d
    by_hand = positions * (9 * c + c * d + attention + 2 * d * 2 * d + d * c)
    assert macs_of_unit(Row(block, (x,))) == by_hand
    assert macs_of_unit(Row(mv.Resize(4), (x,))) == 0


def test_every_preset_says_what_timm_calls_it():
    for preset, (params, _) in GOLDEN.items():
        if "v3" in preset:
            assert mv.TIMM[preset] is None
        else:
            assert sum(parameter.numel() for parameter in timm_model(preset).parameters()) == params


def test_timm_has_no_weights_for_v3():
    with pytest.raises(InputError, match="timm has no MobileViTv3"):
        mv.from_timm({}, mv.PRESETS["mobilevitv3-xxs"])


# parts


@pytest.mark.parametrize("first", [False, True])
def test_unfolding_collects_what_stands_at_one_place_of_all_patches(first):
    x = torch.arange(16.0).view(1, 1, 4, 4)
    sequences = mv.Unfold(2, first).body()(x)
    assert sequences.shape == ((1, 1, 4, 4) if first else (4, 4, 1))
    assert sequences.flatten().view(4, 4).tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_undoes_unfolding(patch, first):
    x = images(2, 3, 8, 8)
    assert torch.equal(mv.Fold(patch, 8, first).body()(mv.Unfold(patch, first).body()(x)), x)


@pytest.mark.parametrize("patch", [2, 4])
def test_attention_reaches_the_same_place_of_every_patch_and_nothing_else(patch):
    tokens = lively(mv.MobileViTv1(8, 1, patch).tokens(8)).double().eval()
    x = images(1, 8, 8, 8)
    changed = x.clone()
    changed[0, 0, 1, 4] += 1
    with torch.no_grad():
        reached = (tokens(changed) - tokens(x)).abs().amax(1)[0] > 1e-9
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1::patch, 4 % patch :: patch] = True
    assert torch.equal(reached, expected)


def test_separable_attention_weighs_keys_into_one_context_for_every_place():
    body = lively(mv.SeparableAttention(3).body()).double()
    x = images(2, 3, 4, 5)
    weight, bias = body.qkv.weight[:, :, 0, 0], body.qkv.bias
    expected = torch.empty_like(x)
    for image in range(2):
        for place in range(4):
            made = weight @ x[image, :, place] + bias[:, None]  # (1 + 2 * 3, 5)
            weights = made[0].exp() / made[0].exp().sum()
            context = (made[1:4] * weights).sum(1)
            expected[image, :, place] = body.proj.weight[:, :, 0, 0] @ (made[4:].clamp(min=0) * context[:, None])
    assert_close(body(x), expected + body.proj.bias.view(1, 3, 1, 1))


def test_the_norm_of_v2_takes_all_channels_and_positions_together():
    x = images(2, 4, 3, 3)
    flat = x.flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert_close(mv.WholeNorm(4).body().double()(x), expected.view(x.shape))


def conv(leaf, x, **more):
    """Convolution and batch norm of a leaf by hand, without its activation."""
    layer, norm, *_ = leaf.body.conv if isinstance(leaf.op, mv.JoinConv) else leaf.body
    y = F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2, **more)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


@pytest.mark.parametrize("side", [4, 5])
def test_v3_fuses_local_and_global_maps_in_that_order_and_adds_its_input(side):
    block = lively(mv.MobileViTv3(8, 1).module(Shape(1, 6, side, side))).double().eval()
    local, beside = block.body.body
    tokens, project = beside.branch
    x = images(1, 6, side, side)
    with torch.no_grad():
        y = F.conv2d(F.silu(conv(local[0], x, groups=6)), local[1].body[0].weight)
        z = F.silu(conv(project, tokens(y)))
        assert_close(block(x), F.silu(conv(beside.join, torch.cat([y, z], 1))) + x)


def test_v3_on_v2_fuses_global_and_local_maps_in_that_order_without_activation():
    block = lively(mv.MobileViTv3Separable(8, 1).module(Shape(1, 6, 4, 4))).double().eval()
    local, beside = block.body[1].body
    x = images(1, 6, 4, 4)
    with torch.no_grad():
        y = F.conv2d(F.silu(conv(local[0], x, groups=6)), local[1].body[0].weight)
        assert_close(block(x), conv(beside.join, torch.cat([beside.branch(y), y], 1)) + x)


@pytest.mark.parametrize(("version", "sizes", "side"), [
    ("v1", [(8, False), (7, False)], 7), ("v3", [(8, False), (7, False)], 7),
    ("v2", [(8, True)], 8), ("v3-separable", [(8, True)], 8),
])  # fmt: skip
def test_odd_maps_are_resized_and_only_v1_and_v3_go_back(version, sizes, side):
    call = calls_of_unit(Row(mv.block_of(version)(8, 1), (Shape(1, 8, 7, 7),)))
    assert [(op.row.unit.side, op.row.unit.corners) for op in call.ops if isinstance(op.row.unit, mv.Resize)] == sizes
    assert call.outputs == (Shape(1, 8, side, side),)
    even = calls_of_unit(Row(mv.block_of(version)(8, 1), (Shape(1, 8, 8, 8),)))
    assert not [op for op in even.ops if isinstance(op.row.unit, mv.Resize)]


def test_resizing_interpolates_linearly_with_or_without_corners_in_place():
    x = torch.tensor([0.0, 3.0, 6.0]).expand(1, 1, 3, 3)
    assert mv.Resize(4, True).body()(x)[0, 0, 0].tolist() == pytest.approx([0, 2, 4, 6])
    # position i of 4 reads at 0.75 (i + 0.5) - 0.5, held at the border
    assert mv.Resize(4).body()(x)[0, 0, 0].tolist() == pytest.approx([0, 1.875, 4.125, 6])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_deployed_form_has_no_batch_norm_and_the_same_outputs_on_odd_maps(version):
    network = lively(build(mv.make(**TINY, versions=(version,) * 3, side=40))).double().eval()
    x = images(2, 3, 40, 40)
    with torch.no_grad():
        expected, deployed = network(x), fuse(network)
        assert_close(deployed(x), expected)
    norms = [sum("BatchNorm" in type(part).__name__ for part in each.modules()) for each in (network, deployed)]
    assert norms[0] > norms[1] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_narrower_child_takes_the_leading_channels_of_both_maps_that_are_fused(version):
    large = lively(build(mv.make(**TINY, versions=(version,) * 3, side=32)))
    child = mv.make((8, 16, 8, 16, 24), (8, 16, 16), (1, 1, 1), versions=(version,) * 3, expand=2, side=32, classes=10)
    cut = slices(large, child)
    with torch.device("meta"):
        assert {k: v.shape for k, v in cut.items()} == {k: v.shape for k, v in Network(child).state_dict().items()}
    joins = [name for name in cut if name.endswith("join.body.conv.0.weight")]
    assert len(joins) == (0 if version == "v2" else 3)
    for name in joins[:1]:  # both maps have 16 channels in the large net and 8 in the child
        assert torch.equal(cut[name], large.state_dict()[name][:8, [*range(8), *range(16, 24)]])


def test_the_skip_of_v3_never_drops_out():
    network = build(mv.make(**TINY, versions=("v3", "v3-separable", "v3"), side=32), drop_path=0.5)
    skips = [module.drop_path for module in network.modules() if isinstance(module, Residual) and module.share == 0]
    others = [module.drop_path for module in network.modules() if isinstance(module, Residual) and module.share]
    assert skips == [0, 0, 0]
    assert max(others) == 0.5


@pytest.mark.parametrize(("version", "width", "features"), [
    ("v1", 80, 320), ("v3", 240, 960), ("v3", 320, 960), ("v2", 80, 80), ("v3-separable", 320, 320),
])  # fmt: skip
def test_the_head_widens_the_last_map_behind_softmax_attention_only(version, width, features):
    arch = mv.make((16, 16, 16, 16, width), (16, 16, 16), versions=("v1", "v1", version), side=32)
    assert calls_of(arch)[-1].row.inputs == (Shape(1, features),)


@pytest.mark.parametrize(("value", "expected"), [(16, 16), (20, 24), (19, 24), (36, 40), (3, 8), (100, 104)])
def test_hidden_channels_are_rounded_to_eight_but_not_below_nine_tenths(value, expected):
    assert divisible(value, 8) == timm.layers.make_divisible(value) == expected


def test_mistakes_are_named():
    with pytest.raises(InputError, match="did you mean 'v3'"):
        mv.make(**TINY, versions=("v1", "v1", "v33"))
    with pytest.raises(InputError, match="dim is no multiple of heads"):
        calls_of(mv.make(**TINY | {"dims": (18, 24, 32)}, side=32))
