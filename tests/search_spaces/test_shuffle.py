"""Channel shuffle against the sheet's counts, timm's blocks on the attended half, and the layer written out."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import timm.models.swin_transformer as timm_swin
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from nas.core.errors import InputError
from nas.core.ops import Residual, Row, Shape
from nas.core.tracing import calls_of_unit, macs_of_unit
from nas.networks.building import build, cost_of, fuse
from search_spaces import deit, shuffle, swin, t2t
from tests.small import assert_close, randomize

# parameters and conv+linear+matmul MACs in millions; plain ViTs have two factors per block, so has Swin
GOLDEN = {
    "deit-t": (6_095_488, "1282.8"),
    "t2t-vit-7": (4_765_148, "1176.0"),
    "t2t-vit-10": (6_344_162, "1545.5"),
    "t2t-vit-12": (7_396_838, "1791.8"),
    "t2t-vit-14": (22_227_946, "4827.2"),
    "swin-xt": (7_182_846, "1031.7"),
    "swin-t": (28_839_980, "4325.0"),
}
SWIN_XT, SWIN_T = (48, 96, 192, 384), (96, 192, 384, 768)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def interleaved(x, y):
    """Channel 2j from x[j], channel 2j + 1 from y[j]."""
    z = torch.empty(*x.shape[:2], 2 * x.shape[2], dtype=x.dtype)
    z[:, :, 0::2], z[:, :, 1::2] = x, y
    return z


@pytest.mark.parametrize("name", GOLDEN)
def test_presets_have_the_counts_of_the_sheet(name):
    params, macs = GOLDEN[name]
    cost = cost_of(shuffle.PRESETS[f"shuffle-{name}"])
    assert (cost.params, f"{cost.macs / 1e6:.1f}") == (params, macs)


@pytest.mark.parametrize(
    ("widths", "depths", "rescaling", "params", "macs"),
    [
        (SWIN_XT, (2, 2, 5, 2), "shortcut", 7_629_740, "1122.1"),
        (SWIN_T, (2, 2, 6, 2), "shortcut", 30_616_474, "4679.2"),
        (SWIN_XT, (2, 2, 4, 2), "half", 7_182_826, "1031.7"),  # the author's code of 2021
        (SWIN_T, (2, 2, 5, 2), "half", 28_839_958, "4325.0"),
    ],
)
def test_other_swins_have_the_counts_of_the_sheet(widths, depths, rescaling, params, macs):
    cost = cost_of(shuffle.make_swin(widths, depths, shuffle=rescaling))
    assert (cost.params, f"{cost.macs / 1e6:.1f}") == (params, macs)


@pytest.mark.parametrize("seed", range(6))
def test_a_plain_vit_pays_for_embedding_last_norm_and_head(seed):
    rng = random.Random(seed)
    c, depth, ratio, side = 32 * rng.randint(1, 6), rng.randint(1, 4), rng.randint(1, 4), 16 * rng.randint(2, 6)
    tokens = (side // 16) ** 2
    for host, patch in (("deit", 3 * 16**2), ("t2t", 9 * 64)):
        more = {"ratio": ratio, "head_dim": 32, "side": side}
        wide, narrow = (
            cost_of(shuffle.make(host, c, depth, shuffle=rescaling, **more)) for rescaling in ("shortcut", "off")
        )
        positions_norm_and_token = (tokens + 1) * c + 2 * c + c
        assert wide.params - narrow.params == patch * c + c + positions_norm_and_token + 1000 * c + 2 * depth
        assert wide.macs - narrow.macs == tokens * patch * c + 1000 * c


@pytest.mark.parametrize("seed", range(4))
def test_a_swin_pays_for_embedding_merges_and_head(seed):
    rng = random.Random(seed)
    widths, depths = [4 * rng.randint(1, 6) for _ in range(3)], [rng.randint(1, 3) for _ in range(3)]
    more = {"heads": (1, 2, 4), "ratios": (2, 2, 2), "window": 4, "side": 64}
    wide, narrow = (
        cost_of(shuffle.make_swin(widths, depths, shuffle=rescaling, **more)) for rescaling in ("shortcut", "off")
    )
    merges = [(8 * before, 4 * before * behind) for before, behind in itertools.pairwise(widths)]
    embed, head = (3 * 16 + 1 + 2) * widths[0], 2 * widths[2] + 1000 * widths[2]
    assert wide.params - narrow.params == embed + head + 2 * sum(depths) + sum(map(sum, merges))
    merging = sum(side**2 * linear for side, (_, linear) in zip((8, 4), merges, strict=True))
    assert wide.macs - narrow.macs == 16**2 * 48 * widths[0] + merging + 1000 * widths[2]


@pytest.mark.parametrize("rescaling", shuffle.RESCALINGS)
def test_the_layer_is_the_one_written_out(rescaling):
    block = shuffle.ShuffledViTBlock(2, 16, shuffle=rescaling)
    layer = randomize(block.build(Shape(1, 10, 64))).double().eval()
    x = numbers(2, 10, 64)
    u, v = x[:, :, :32], x[:, :, 32:]
    with torch.no_grad():
        for residual in layer.residuals:
            a, branch = residual.add.body.factor, residual.body(u)
            u = {
                "plain": lambda: u + branch,  # noqa: B023
                "half": lambda: u / 2 + branch,  # noqa: B023
                "shortcut": lambda: a * u + branch,  # noqa: B023
                "branch": lambda: u + a * branch,  # noqa: B023
                "sum": lambda: a * (u + branch),  # noqa: B023
            }[rescaling]()
            assert (a is None) == (rescaling in ("plain", "half"))
            assert a is None or a != 1
        expected = interleaved(u, v)
        assert_close(layer(x), expected, 1e-9)
        module = block.module(Shape(1, 10, 64)).double()
        module.body.load_state_dict(layer.state_dict())
        assert_close(fuse(module)(x), expected, 1e-9)


def test_factors_begin_as_1_so_that_every_learned_rescaling_begins_as_none():
    x = numbers(1, 10, 64)
    layers = {
        rescaling: shuffle.ShuffledViTBlock(2, 16, shuffle=rescaling).build(Shape(1, 10, 64)).double().eval()
        for rescaling in ("plain", *shuffle.LEARNED)
    }
    state = randomize(layers["plain"]).state_dict()
    for layer in layers.values():
        layer.load_state_dict({name: state.get(name, first) for name, first in layer.state_dict().items()})
        assert_close(layer(x), layers["plain"](x), 1e-9)


def weights_of(ours, names):
    """The weights of a block of ours under timm's names."""
    state = ours.state_dict()
    return {
        theirs + key.removeprefix(name): value
        for theirs, name in names.items()
        for key, value in state.items()
        if key.startswith(name)
    }


def test_the_attended_half_goes_through_the_host_s_block_on_deit():
    ours = randomize(shuffle.ShuffledViTBlock(4, 16, shuffle="plain").build(Shape(1, 17, 96))).double().eval()
    theirs = TimmBlock(48, 3, qkv_bias=True, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6)).double().eval()
    names = {key: f"residuals.{name}" for key, name in deit.BLOCK_NAMES.items()}
    theirs.load_state_dict(weights_of(ours, names))
    x = numbers(1, 17, 96)
    assert_close(ours(x), interleaved(theirs(x[:, :, :48]), x[:, :, 48:]), 1e-9)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_attended_half_goes_through_the_host_s_block_on_swin(shifted):
    block = shuffle.ShuffledSwinBlock(2, 4, 4, shifted, "plain")
    ours = randomize(block.build(Shape(1, 64, 32))).double().eval()
    shift = 2 if shifted else 0
    theirs = timm_swin.SwinTransformerBlock(16, (8, 8), 2, window_size=4, shift_size=shift).double().eval()
    names = {key: f"residuals.{name}" for key, name in swin.BLOCK_NAMES.items()}
    theirs.load_state_dict(weights_of(ours, names))
    x = numbers(1, 64, 32)
    expected = theirs(x[:, :, :16].reshape(1, 8, 8, 16)).flatten(1, 2)
    assert_close(ours(x), interleaved(expected, x[:, :, 16:]), 1e-9)


def test_each_group_has_a_merge_of_its_own_and_no_shuffle_there():
    ours = randomize(shuffle.GroupMerge(48).build(Shape(1, 64, 32))).double()
    x = numbers(1, 64, 32)
    expected = []
    for group, merge in zip(x.chunk(2, 2), (ours.attended, ours.idle), strict=True):
        theirs = timm_swin.PatchMerging(16, 24).double()
        theirs.load_state_dict(weights_of(merge, {"norm.": "1.body.", "reduction.": "2.body."}))
        expected.append(theirs(group.reshape(1, 8, 8, 16)).flatten(1, 2))
    assert_close(ours(x), torch.cat(expected, 2), 1e-9)


def test_a_pair_of_merges_costs_half_of_one_for_all_channels():
    pair, one = (Row(block, (Shape(1, 64, 32),)) for block in (shuffle.GroupMerge(64), swin.SwinMerge(64)))
    assert 2 * macs_of_unit(pair) == macs_of_unit(one) == 16 * 128 * 64


def test_half_of_the_idle_channels_are_attended_next():
    attended, idle = torch.arange(4.0).view(1, 1, 4), torch.arange(4.0, 8.0).view(1, 1, 4)
    assert shuffle.Interleave().body()(attended, idle).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_attention_and_norms_keep_the_width_and_the_heads_of_the_host():
    (call,) = [calls_of_unit(Row(shuffle.ShuffledViTBlock(4, shuffle="shortcut"), (Shape(1, 197, 384),)))]
    ops = [inner.row.unit for inner in call.ops]
    norm, attention = ops[0], ops[1]
    assert (norm, attention) == (deit.LayerNorm(192, "1e-6"), deit.Attention(192, 3))
    assert [type(op).__name__ for op in ops][-2:] == ["RescaledAdd", "Interleave"]


@pytest.mark.parametrize(
    ("arch", "host"),
    [
        (shuffle.make("deit", 192, 12, shuffle="off"), deit.PRESETS["deit-t"]),
        (shuffle.make("t2t", 256, 7, ratio=2, shuffle="off"), t2t.PRESETS["t2t-vit-7"]),
        (shuffle.make("t2t", 384, 14, ratio=3, kind="transformer", shuffle="off"), t2t.PRESETS["t2t-vit-t-14"]),
        (shuffle.make("t2t", 256, 7, ratio=2, tokens=32, shuffle="off"), t2t.make(256, 7, tokens=32)),
        (shuffle.make_swin(SWIN_T, (2, 2, 6, 2), shuffle="off"), swin.PRESETS["swin-t"]),
    ],
)
def test_without_shuffle_the_blocks_are_those_of_the_host(arch, host):
    blocks = [block for stage in arch.stages for block in stage]
    assert blocks == [block for stage in host.stages for block in stage]


def test_a_plain_vit_has_positions_and_class_token_for_both_groups():
    network = build(shuffle.make("deit", 32, 1, head_dim=16, side=32, classes=3))
    embed = network.stages[0][0].body[1].body
    assert (embed.token.shape, embed.positions.shape) == ((1, 1, 64), (1, 5, 64))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_the_positions_of_t2t_are_a_sinusoid_of_the_whole_width():
    network = build(shuffle.make("t2t", 32, 1, ratio=2, head_dim=16, side=32))
    positions = network.stages[0][2].body[2].body.positions
    assert torch.equal(positions, t2t.ClassAndSinusoid(64, 4).body().positions)


def test_branches_drop_out_as_in_the_host_and_the_idle_group_never():
    network = build(shuffle.make("deit", 32, 3, head_dim=16, side=32), drop_path=0.2)
    rates = [part.drop_path for part in network.modules() if isinstance(part, Residual)]
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])
    block = network.stages[0][-1].train()
    for residual in block.body.residuals:
        residual.drop_path = 1.0
    x = torch.randn(2, 5, 64)
    assert torch.equal(block(x), interleaved(x[:, :, :32], x[:, :, 32:]))


@pytest.mark.parametrize(
    ("space", "host", "preset"),
    [
        (shuffle.SPACE, shuffle.make("deit", 192, 12, shuffle="off"), "shuffle-deit-t"),
        (shuffle.SPACE, shuffle.make("t2t", 256, 7, ratio=2, shuffle="off"), "shuffle-t2t-vit-7"),
        (shuffle.SWIN, shuffle.make_swin(SWIN_XT, (2, 2, 4, 2), shuffle="off"), "shuffle-swin-xt"),
    ],
)
def test_shuffle_is_a_choice_beside_width(space, host, preset):
    assert space.params_of(host)["shuffle"] == "off"
    assert space.arch(space.params_of(host) | {"shuffle": "shortcut"}) == shuffle.PRESETS[preset]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shuffle.make("deti", 192, 12), "did you mean 'deit'"),
        (lambda: shuffle.RescaledAdd("shortcuts").body(), "did you mean 'shortcut'"),
        (lambda: shuffle.GroupMerge(64).build(Shape(1, 64, 33)), "even number of channels, got 33"),
    ],
)
def test_what_is_unknown_or_odd_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
