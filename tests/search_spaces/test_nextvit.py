"""Next-ViT against its published counts, its closed forms and timm's implementation of it."""

from __future__ import annotations

import random

import pytest
import timm
import torch
from torch import nn

from nas.core.arch import calls_of, steps_of
from nas.core.blocks import divisible
from nas.core.errors import InputError
from nas.core.ops import Residual, Row, Shape
from nas.core.tracing import calls_of_unit, fuse_in_place, macs_of_op, params_of_unit
from nas.networks.building import Network, build, cost_of, fuse
from search_spaces import nextvit as nv
from tests.small import assert_close, lively

# parameters of timm 1.0.31 and the official code, and their conv+linear+matmul MACs in the digits published
GOLDEN = {
    "s": (31_763_368, "5794.4"),
    "b": (44_818_856, "8273.8"),
    "l": (57_874_344, "10753"),
}
S_BY_R = {
    25: (29_942_312, "5692.8"),
    50: (30_493_864, "5714.3"),
    75: (31_763_368, "5794.4"),
    100: (35_290_280, "6125.8"),
}
S = ((96, 192, 384, 768), (3, 3, 4, 2), (1, 1, 2, 1), "CHHH")


def multiple(value):
    nearest = max(32, int(value + 16) // 32 * 32)
    return nearest + 32 if nearest < 0.9 * value else nearest


def ncb(o, ratio, hw):
    """The sheet's parameters and MACs of an NCB without its patch embedding."""
    h = ratio * o
    return 288 * o + 2 * o + o * o + 2 * o + 2 * o * h + h + o, hw * (288 * o + o * o + 2 * o * h)


def ntb(m, o, sr, ratio, hw):
    """The sheet's parameters and MACs of an NTB without its patch embedding."""
    c, h = o - m, ratio * o
    project = c not in (0, m)
    params = 2 * m + 4 * (m * m + m) + (2 * m if sr > 1 else 0) + (m * c + 2 * c if project else 0)
    params += 288 * c + 2 * c + c * c + 2 * o + 2 * o * h + h + o
    macs = 2 * m * m * hw + 2 * m * m * hw // sr**2 + 2 * hw * (hw // sr**2) * m
    return params, macs + hw * ((m * c if project else 0) + 288 * c + c * c + 2 * o * h)


def closed_form(
    widths, n, groups, strategies, r=75, ncb_ratios=(3,) * 4, ntb_ratios=(2,) * 4, sr=(8, 4, 2, 1), side=224
):
    """Parameters and MACs of the sheet's formulas for 1000 classes and the published stem."""
    params = 3 * 64 * 9 + 64 * 32 * 9 * 2 + 64 * 64 * 9 + 2 * (64 + 32 + 64 + 64)
    hw = (side // 2) ** 2
    macs = hw * 9 * (3 * 64 + 2 * 64 * 32) + hw // 4 * 9 * 64 * 64
    reaching, hw = 64, hw // 4
    for stage, (width, kind) in enumerate(zip(widths, strategies, strict=True)):
        hw = hw // 4 if stage else hw
        out = multiple(4 * width / 3)
        m = multiple(out * r // 100)
        group = ["ncb"] * (0 if kind == "T" else n[stage]) + ["ntb"] * (kind != "C")
        for number, block in enumerate(group * groups[stage]):
            wanted = width if block == "ncb" else m
            if (stage and not number) or reaching != wanted:
                params += reaching * wanted + 2 * wanted
                macs += reaching * wanted * hw
            if block == "ncb":
                more, reaching = ncb(width, ncb_ratios[stage], hw), width
            else:
                more, reaching = ntb(m, out, sr[stage], ntb_ratios[stage], hw), out
            params, macs = params + more[0], macs + more[1]
    return params + 2 * reaching + 1000 * reaching + 1000, macs + 1000 * reaching


def digits(macs, shown):
    """MACs in millions, cut off where the published figure ends."""
    return str(macs / 1e6)[: len(shown)]


def batch_norms(model):
    return [name for name, part in model.named_modules() if "BatchNorm" in type(part).__name__]


@pytest.mark.parametrize("size", GOLDEN)
def test_presets_have_the_published_counts(size):
    params, macs = GOLDEN[size]
    cost = cost_of(nv.PRESETS[f"nextvit-{size}"])
    assert cost.params == params
    assert digits(cost.macs, macs) == macs
    assert (cost.params, cost.macs) == closed_form(*S[:2], (1, 1, {"s": 2, "b": 4, "l": 6}[size], 1), S[3])


def test_the_parts_of_s_have_the_published_parameters():
    by_stage = dict.fromkeys(["stem", "1", "2", "3", "4", "NextPooled", "Logits"], 0)
    for call in steps_of(nv.PRESETS["nextvit-s"]):
        part = "stem" if isinstance(call.row.unit, nv.NextStem) else call.stage
        by_stage[type(call.row.unit).__name__ if part == "head" else part] += params_of_unit(call.row)
    assert list(by_stage.values()) == [75_904, 285_120, 1_410_944, 12_957_184, 16_007_168, 2_048, 1_025_000]


@pytest.mark.parametrize("r", S_BY_R)
def test_the_shrink_ratio_costs_what_the_ablation_says(r):
    params, macs = S_BY_R[r]
    cost = cost_of(nv.make(*S, r=r))
    assert cost.params == params
    assert digits(cost.macs, macs) == macs


@pytest.mark.parametrize("seed", range(8))
def test_random_configurations_equal_the_closed_form(seed):
    rng = random.Random(seed)
    widths = [rng.choice([96, 128, 160, 192, 288]) for _ in range(4)]
    n, groups = [[rng.randint(1, 3) for _ in range(4)] for _ in range(2)]
    strategies = [rng.choice("CTH") for _ in range(4)]
    more = {"r": rng.choice([25, 50, 75, 100]), "sr": [rng.choice([1, 2, 4, 8][: 4 - k]) for k in range(4)]}
    more |= {name: [rng.choice([2, 3, 4]) for _ in range(4)] for name in ("ncb_ratios", "ntb_ratios")}
    cost = cost_of(nv.make(widths, n, groups, strategies, **more, side=64))
    assert (cost.params, cost.macs) == closed_form(widths, n, groups, strategies, **more, side=64)


def check_against_timm(arch, size, **changes):
    with torch.device("meta"):  # nobody needs the first weights
        theirs, ours = timm.create_model(f"nextvit_{size}", **changes), Network(arch)
    theirs = lively(theirs.to_empty(device="cpu")).double().eval()
    ours.load_state_dict(nv.from_timm(theirs.state_dict(), arch), assign=True)  # strict: every tensor has its place
    x = torch.randn(1, *arch.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
        for model in (ours.eval(), fuse(ours)):
            assert_close(model(x), expected)


def test_outputs_equal_timms_at_the_published_size():
    check_against_timm(nv.PRESETS["nextvit-s"], "small")


@pytest.mark.parametrize(("size", "groups"), [("base", 4), ("large", 6)])
def test_outputs_of_the_larger_presets_equal_timms_on_small_images(size, groups):
    arch = nv.make(*S[:2], (1, 1, groups, 1), S[3], side=64)
    assert arch.stages == nv.PRESETS[f"nextvit-{size[0]}"].stages
    check_against_timm(arch, size)


@pytest.mark.parametrize("r", [25, 50])
def test_outputs_equal_timms_for_other_shrink_ratios(r):
    arch = nv.make(*S, r=r, sr=(8, 2, 1, 1), side=64)
    check_against_timm(arch, "small", mix_block_ratio=r / 100, sr_ratios=(8, 2, 1, 1))


def test_every_preset_says_what_timm_calls_it():
    assert nv.TIMM.keys() == nv.PRESETS.keys()
    for preset, name in nv.TIMM.items():
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        assert params == cost_of(nv.PRESETS[preset]).params


def test_pooling_averages_neighbours_in_raster_order_or_windows_of_the_map():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert nv.POOLINGS["raster"](2)(x).flatten().tolist() == [1.5, 5.5, 9.5, 13.5]
    assert nv.POOLINGS["map"](2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_pooling_on_the_map_changes_outputs_but_no_counts():
    raster, window = (nv.EfficientAttention(64, 2, pool) for pool in ("raster", "map"))
    shape = Shape(1, 64, 8, 8)
    for count in (params_of_unit, macs_of_op):
        assert count(Row(raster, (shape,))) == count(Row(window, (shape,)))
    body, other = lively(raster.body()).eval(), window.body().eval()
    other.load_state_dict(body.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert (body(x) - other(x)).abs().max() > 1e-2 * body(x).abs().max()
    constant = torch.ones(shape)
    assert_close(other(constant), body(constant))


@pytest.mark.parametrize("r", [25, 50, 75, 100])
@pytest.mark.parametrize("pool", ["raster", "map"])
def test_the_deployed_form_has_no_norm_and_the_same_outputs(r, pool):
    arch = nv.make((32, 96, 96), (1,) * 3, (1,) * 3, "CTH", r=r, ncb_ratios=(2,) * 3, ntb_ratios=(2,) * 3,
                   sr=(1, 2, 1), pool=pool, stem=nv.NextStem(16, 2), side=32, classes=10)  # fmt: skip
    network = lively(build(arch)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, deployed = network(x), fuse(network)
        assert_close(deployed(x), expected)
    assert batch_norms(network)
    assert not batch_norms(deployed)


def test_attention_gives_each_query_the_average_of_values_by_softmax():
    op = nv.EfficientAttention(32, 1)
    body = lively(op.body()).double().eval()
    x = torch.randn(1, 32, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = body.norm(x)[0].flatten(1).T  # 4 tokens of 32 channels, one head
    q, (k, v) = body.q.weight[:, :, 0, 0], body.kv.weight[:, :, 0, 0].chunk(2)
    (bk, bv), out = body.kv.bias.chunk(2), body.proj.weight[:, :, 0, 0]
    scores = (tokens @ q.T + body.q.bias) @ (tokens @ k.T + bk).T / 32**0.5
    expected = scores.softmax(1) @ (tokens @ v.T + bv) @ out.T + body.proj.bias
    assert_close(body(x)[0].flatten(1).T, expected)


@pytest.mark.parametrize(("m", "convs"), [(96, 3), (64, 2), (128, 0)])
def test_the_second_group_of_channels_loses_its_projection_at_half_and_vanishes_at_full_attention(m, convs):
    call = calls_of_unit(Row(nv.NTB(128), (Shape(1, m, 4, 4),)))
    kinds = [type(op.row.unit).__name__ for op in call.ops]
    assert kinds.count("Conv") == convs
    assert kinds.count("Concat") == (m < 128)
    assert call.outputs == (Shape(1, 128, 4, 4),)


def test_attended_channels_come_first_behind_the_block():
    block = nv.NTB(128).module(Shape(1, 96, 4, 4))
    for branch in (block.body.attention, block.body.convolve, block.body.mlp):
        for parameter in branch.body.parameters():
            nn.init.zeros_(parameter)
    x = torch.randn(1, 96, 4, 4)
    assert torch.equal(block.eval()(x)[:, :96], x)


def test_an_ntb_shares_its_drop_path_rate_between_its_groups():
    network = build(nv.make(*S), drop_path=0.1)
    assert isinstance(network.stages[3][-1].block, nv.NTB)
    rates = [part.drop_path for part in network.stages[3][-1].modules() if isinstance(part, Residual)]
    assert rates == pytest.approx([0.075, 0.025, 0.1])
    first, second = (part.drop_path for part in network.stages[0][3].modules() if isinstance(part, Residual))
    assert first == second == pytest.approx(0.1 / 19)  # the second of 20 blocks


def test_weights_start_as_the_published_code_has_them():
    network = build(nv.make((96, 96, 96, 96), (1,) * 4, (1,) * 4, "CHHH", side=64))
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert part.bias is None or not part.bias.any()


def test_channel_numbers_round_to_multiples_of_32_but_never_far_down():
    assert [divisible(value, 32) for value in (1, 47, 48, 72, 80, 256)] == [32, 64, 64, 96, 96, 256]
    assert [nv.ntb_width(width) for width in (96, 192, 384, 768)] == [128, 256, 512, 1024]
    assert [nv.attended(256, r) for r in (25, 50, 75, 100)] == [64, 128, 192, 256]
    assert [nv.attended(96, r) for r in (25, 50, 75, 100)] == [32, 64, 64, 96]  # the second group keeps a head
    for out, r in [(96, 0), (96, 101)]:
        with pytest.raises(InputError, match="percentage"):
            nv.attended(out, r)


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        ("C", "E96 N N N N"),
        ("T", "E64 T E64 T"),
        ("H", "E96 N N E64 T E96 N N E64 T"),
    ],
)
def test_a_stage_has_the_blocks_of_its_strategy_and_embeds_where_channels_change(strategy, text):
    stage = nv.make((32, 96, 96), (1, 2, 1), (1, 2, 1), ("C", strategy, "C"), r=50, ncb_ratios=(2,) * 3,
                    ntb_ratios=(2,) * 3, sr=(1, 2, 1), side=64).stages[1]  # fmt: skip
    names = {nv.NCB: "N", nv.NTB: "T"}
    assert " ".join(names.get(type(block)) or f"E{block.cout}" for block in stage) == text
    assert [block.stride for block in stage if isinstance(block, nv.PatchEmbed)] == [2, *[1] * (text.count("E") - 1)]


@pytest.mark.parametrize(
    ("strategy", "dead"),
    [
        ("C", {"r": 25, "pool": "map", "sr": 2, "ntb_ratio": 3}),
        ("T", {"n": 2, "ncb_ratio": 2}),
        ("H", {"sr": 1, "pool": "map"}),
    ],
)
def test_choices_that_say_nothing_leave_no_trace(strategy, dead, rng):
    space = nv.SPACE
    params = {name: rng.choice(choice.values) for name, choice in space.choices.items()}
    params |= {"stage3.strategy": strategy, "stage3.pool": "raster"}
    params |= {"stage3.sr": 1} if dead.get("sr") == 1 else {}
    arch = space.arch(params)
    assert space.arch(params | {f"stage3.{name}": value for name, value in dead.items()}) == arch
    assert space.arch(space.params_of(arch)) == arch


def test_every_small_arch_is_found_again_from_its_blocks():
    archs = list(nv.SMALL.archs())
    assert len(set(archs)) == len(archs) == nv.SMALL.count()
    for arch in archs[::97]:
        assert nv.SMALL.arch(nv.SMALL.params_of(arch)) == arch


def test_tokens_come_back_to_a_map_at_the_entry_and_at_the_head():
    tokens = Shape(1, 64, 96)
    assert calls_of_unit(Row(nv.PatchEmbed(128), (tokens,))).outputs == (Shape(1, 128, 4, 4),)
    assert calls_of_unit(Row(nv.NextPooled(), (tokens,))).outputs == (Shape(1, 96),)
    flat, image = (lively(nv.PatchEmbed(128).module(shape)).eval() for shape in (tokens, Shape(1, 96, 8, 8)))
    x = torch.randn(1, 96, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat(x.flatten(2).transpose(1, 2)), image(x))


def test_half_of_an_odd_map_rounds_up_and_averages_only_what_is_there():
    assert torch.equal(nv.HalfPool().body()(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 2, 2))


def test_an_embedding_that_changes_nothing_has_no_row():
    arch = nv.make((64, 96, 96, 96), (1,) * 4, (1,) * 4, "CCCC", side=64)
    assert [type(call.row.unit).__name__ for call in calls_of(arch)][:3] == ["NextStem", "NCB", "PatchEmbed"]
    assert params_of_unit(Row(nv.PatchEmbed(64, 1), (Shape(1, 64, 16, 16),))) == 0


@pytest.mark.parametrize(
    ("unit", "shape", "message"),
    [
        (nv.NTB(1024, sr=2), (1, 768, 7, 7), "does not divide a map of side 7"),
        (nv.NTB(64, sr=4, pool="map"), (1, 32, 6, 6), "does not divide a map of side 6"),
        (nv.NTB(64), (1, 96, 8, 8), "96 channels"),
        (nv.NTB(64, sr=2, pool="rastr"), (1, 32, 8, 8), "raster"),
        (nv.NCB(), (1, 48, 8, 8), "multiple of 32"),
        (nv.NextStem(64, 3), (1, 3, 32, 32), "expected 2 or 4"),
    ],
)
def test_a_block_says_what_it_cannot_be_built_on(unit, shape, message):
    with pytest.raises(InputError, match=message):
        unit.build(Shape(*shape))


def test_values_that_make_no_network_are_named():
    with pytest.raises(InputError, match="'X'"):
        nv.make(*S[:3], "CHHX")
    with pytest.raises(InputError, match="one value for each stage"):
        nv.make(*S[:3], "CHH")


def test_the_parts_of_a_slice_keep_both_groups_and_both_of_keys_and_values():
    hybrid = nv.NTB(128).build(Shape(1, 96, 4, 4))
    first, second = (leaf.op for leaf in hybrid.mlp.body)
    assert first.parts()["conv.weight"] == {0: (256,), 1: (96, 32)}
    assert second.parts()["conv.weight"] == {0: (96, 32), 1: (256,)}
    for op in (first, second, nv.EfficientAttention(96, 2)):
        state = op.body().state_dict()
        for name, axes in op.parts().items():
            assert name not in state or all(sum(sizes) == state[name].shape[axis] for axis, sizes in axes.items())
    assert nv.EfficientAttention(96).parts()["kv.bias"] == {0: (96, 96)}


def test_norms_before_and_behind_a_pooling_fold_into_one_convolution():
    generator = torch.Generator().manual_seed(0)
    norms = nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.BatchNorm2d(4))
    conv = nn.Conv2d(4, 3, 1)
    model = lively(nn.Sequential(*norms, conv)).double().eval()
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        folded = nv.fold_before(conv, norms[0], norms[2])
        assert_close(folded(norms[1](x)), model(x))


def test_a_lone_head_folds_its_norm_into_the_mean():
    head = lively(nv.NextPooled().module(Shape(1, 64, 4, 4))).eval()
    x = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = head(x)
    assert_close(fuse_in_place(head)(x), expected)
    assert not batch_norms(head)
