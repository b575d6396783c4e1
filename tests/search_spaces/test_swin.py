"""Swin against its published counts and against timm's implementation of it."""

from __future__ import annotations

import dataclasses
import random

import pytest
import timm
import torch
from torch import nn

from nas.core.errors import InputError
from nas.core.ops import Residual, Shape
from nas.networks.building import build, cost_of, fuse
from search_spaces import swin
from tests.small import assert_close, randomize

# parameters and conv+linear+matmul MACs in millions: timm 1.0.31 for t and xt, published figures for s
GOLDEN = {"xt": (6_852_742, "1071.1"), "t": (28_288_354, "4490.6"), "s": (49_606_258, "8740.9")}


def closed_form(widths, depths, heads, ratios, window, side):
    """Parameters and MACs for patches of 4 and 1000 classes; windows are padded where they do not divide the map."""
    side = side // 4
    params, macs = (3 * 16 + 1 + 2) * widths[0], side**2 * 48 * widths[0]
    for stage, (c, depth, count, r) in enumerate(zip(widths, depths, heads, ratios, strict=True)):
        if stage:
            before, side = widths[stage - 1], -(-side // 2)
            params += 8 * before + 4 * before * c
            macs += side**2 * 4 * before * c
        inner = min(window, side)
        padded, tokens = (-(-side // inner) * inner) ** 2, side**2
        params += depth * ((4 + 2 * r) * c * c + (9 + r) * c + (2 * inner - 1) ** 2 * count)
        macs += depth * (padded * (4 * c * c + 2 * inner**2 * c) + tokens * 2 * r * c * c)
    return params + 2 * widths[-1] + 1000 * widths[-1] + 1000, macs + 1000 * widths[-1]


def pixels(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", GOLDEN)
def test_presets_have_the_published_counts(size):
    params, macs = GOLDEN[size]
    cost = cost_of(swin.PRESETS[f"swin-{size}"])
    assert cost.params == params
    assert f"{cost.macs / 1e6:.1f}" == macs


def test_a_block_less_costs_what_the_sheet_says():
    cost = cost_of(swin.make((48, 96, 192, 384), (2, 2, 4, 2)))
    assert (cost.params, round(cost.macs / 1e6, 1)) == (6_405_850, 980.7)


@pytest.mark.parametrize("seed", range(6))
def test_random_configurations_equal_the_closed_form(seed):
    rng = random.Random(seed)
    heads = [rng.choice([1, 2, 4]) for _ in range(3)]
    widths = [count * rng.choice([8, 16]) for count in heads]
    depths, ratios = [[rng.randint(1, 3) for _ in range(3)] for _ in range(2)]
    window, side = rng.choice([3, 4, 7]), rng.choice([32, 36, 64, 100])
    cost = cost_of(swin.make(widths, depths, heads, ratios=ratios, window=window, side=side))
    assert (cost.params, cost.macs) == closed_form(widths, depths, heads, ratios, window, side)


def check_against_timm(arch, name, **options):
    theirs = randomize(timm.create_model(name, **options)).double().eval()
    ours = build(arch).double().eval()
    ours.load_state_dict(swin.from_timm(theirs.state_dict(), arch))  # strict: every tensor has its place
    x = pixels(1, *arch.input_shape)
    with torch.no_grad():
        expected = theirs(x)
        for model in (ours, fuse(ours)):
            assert_close(model(x), expected)


def test_outputs_equal_timms_at_the_published_size():
    check_against_timm(swin.PRESETS["swin-t"], "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("side", [96, 100, 188])
def test_outputs_equal_timms_where_maps_are_padded_odd_or_smaller_than_a_window(side):
    widths, depths = (24, 48, 96, 192), (2, 3, 2, 1)
    arch = swin.make(widths, depths, side=side)
    options = {"img_size": side, "embed_dim": 24, "depths": depths, "num_classes": 1000}
    check_against_timm(arch, "swin_tiny_patch4_window7_224", **options)


def test_every_preset_that_timm_has_says_what_timm_calls_it():
    assert swin.TIMM.keys() == swin.PRESETS.keys()
    for preset, name in ((preset, name) for preset, name in swin.TIMM.items() if name is not None):
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        assert params == cost_of(swin.PRESETS[preset]).params


@pytest.mark.parametrize(
    ("shifted", "row", "column", "rows", "columns"),
    [
        (False, 0, 0, (0, 4), (0, 4)),
        (False, 5, 2, (4, 8), (0, 4)),
        (True, 3, 5, (2, 6), (2, 6)),
        (True, 0, 0, (0, 2), (0, 2)),  # the edge cuts a window in parts that do not see each other
        (True, 7, 3, (6, 8), (2, 6)),
    ],
)
def test_a_token_reaches_those_of_its_window_alone(shifted, row, column, rows, columns):
    attention = randomize(swin.WindowAttention(8, 8, 2, window=4, shifted=shifted).body()).double()
    x = pixels(1, 64, 8)
    other = x.clone()
    other[0, 8 * row + column] += 1
    changed = ((attention(other) - attention(x)).abs().amax(2) > 1e-9).view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(changed, expected)


def test_a_map_no_larger_than_a_window_is_one_window_and_does_not_shift():
    plain, shifted = (swin.WindowAttention(8, 3, 2, window=4, shifted=shifted).body() for shifted in (False, True))
    shifted.load_state_dict(randomize(plain).state_dict())
    x = torch.randn(1, 9, 8)
    assert plain.bias.shape == (25, 2)
    assert torch.equal(plain(x), shifted(x))


def test_neighbours_stand_column_by_column():
    x = torch.arange(16.0).view(1, 16, 1)
    assert swin.Neighbours(4).body()(x)[0].tolist() == [[0, 4, 1, 5], [2, 6, 3, 7], [8, 12, 9, 13], [10, 14, 11, 15]]
    assert swin.Neighbours(3).body()(x[:, :9])[0].tolist() == [[0, 3, 1, 4], [2, 5, 0, 0], [6, 0, 7, 0], [8, 0, 0, 0]]


def test_every_second_block_shifts_its_windows():
    for depth in (1, 2, 5):
        stage = swin.make((12, 24), (depth, 1), (1, 2), ratios=(2, 2), side=64).stages[0]
        assert [block.shifted for block in stage[1:]] == [bool(number % 2) for number in range(depth)]


def test_a_published_arch_takes_images_of_another_size():
    arch = dataclasses.replace(swin.PRESETS["swin-xt"], input_shape=(3, 96, 96))
    assert build(arch).eval()(torch.randn(1, 3, 96, 96)).shape == (1, 1000)


def test_drop_path_grows_over_the_blocks_as_published():
    network = build(swin.make((12, 24), (2, 2), (1, 2), ratios=(2, 2), side=64), drop_path=0.3)
    rates = [part.drop_path for part in network.modules() if isinstance(part, Residual)]
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_weights_start_as_the_published_code_has_them():
    network = build(swin.make((48, 96), (2, 2), (3, 6), ratios=(4, 4), side=64))
    for part in network.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert part.bias is None or not part.bias.any()
    tables = torch.cat([value.flatten() for name, value in network.named_parameters() if name.endswith("body.bias")])
    assert tables.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("block", "shape", "message"),
    [
        (swin.SwinBlock(3, 2, shifted=False), (1, 64, 32), "3 heads do not divide 32 channels"),
        (swin.SwinEmbed(12, patch=5), (1, 3, 32, 32), "does not divide an image of side 32"),
    ],
)
def test_a_block_says_what_it_cannot_be_built_on(block, shape, message):
    with pytest.raises(InputError, match=message):
        block.build(Shape(*shape))
