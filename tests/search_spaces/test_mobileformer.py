"""Mobile-Former against its published counts, closed forms per part, and its formulas written out in plain torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import calls_of
from nas.core.ops import Residual, Shape
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.networks.building import build, cost_of, fuse, set_drop_path
from nas.networks.weights import slices
from search_spaces import mobileformer as mf
from tests.small import randomize

# parameters, and conv+linear+matmul MACs in millions, of the official code
GOLDEN = {
    "508m": (13_976_976, 498.5),
    "294m": (11_422_648, 286.7),
    "214m": (9_425_920, 208.4),
    "151m": (7_595_828, 146.2),
    "96m": (4_585_252, 92.02),
    "52m": (3_469_092, 49.29),
    "26m": (3_232_788, 23.55),
}
# MACs in millions of the Mobile convolutions, M2F, Former, F2M and the generators of dynamic ReLUs
SHARES = {
    "508m": (426.9, 15.28, 14.75, 9.79, 1.63),
    "294m": (232.5, 10.60, 14.75, 6.79, 1.29),
    "96m": (72.03, 3.31, 3.18, 1.81, 0.38),
    "26m": (13.32, 1.41, 2.38, 1.01, 0.30),
}


@pytest.mark.parametrize("size", GOLDEN)
def test_presets_have_the_published_counts(size):
    arch = mf.PRESETS[f"mobileformer-{size}"]
    params, millions = GOLDEN[size]
    cost = cost_of(arch)
    assert (cost.params, cost.macs) == closed_form(arch)
    assert cost.params == params
    assert round(cost.macs / 1e6, 2 if millions < 100 else 1) == millions


@pytest.mark.parametrize("size", SHARES)
def test_the_parts_of_a_block_have_the_published_share_of_the_macs(size):
    calls = calls_of(mf.PRESETS[f"mobileformer-{size}"])

    def millions(*kinds):
        return sum(macs_of_unit(call.row) for call in calls if isinstance(call.row.unit, kinds)) / 1e6

    ops = [op.row for call in calls for op in call.ops]
    steering = sum(macs_of_unit(row) for row in ops if isinstance(row.unit, mf.DynamicReLU)) / 1e6
    convs = millions(mf.Lite, mf.Mobile, mf.MobileDown) - steering
    found = (convs, millions(mf.BridgeIn), millions(mf.Former), millions(mf.BridgeOut), steering)
    assert found == pytest.approx(SHARES[size], abs=0.05)
    assert found[1:] == pytest.approx(SHARES[size][1:], abs=0.0051)


def test_the_294m_has_the_published_parameters_in_every_part():
    calls = calls_of(mf.PRESETS["mobileformer-294m"])
    sizes = [params_of_unit(call.row) for call in calls]
    blocks = [sum(sizes[at : at + 4]) for at in range(2, len(sizes) - 4, 4)]
    assert sizes[:2] == [464, 896]
    assert blocks == [
        *(286_160, 289_872, 327_360, 346_944, 444_960, 488_736, 596_576, 722_784, 853_216),
        *(1_110_624, 1_110_624),
    ]
    assert sizes[-4] == 111_552
    assert sum(sizes[-3:]) == 4_730_728
    assert sum(sizes[-2:]) == 4_507_240


@pytest.mark.parametrize("seed", range(10))
def test_random_archs_of_the_space_equal_the_closed_form(seed, rng):
    rng.seed(seed)
    arch = mf.SPACE.sample(rng)
    cost = cost_of(arch)
    assert (cost.params, cost.macs) == closed_form(arch)


@pytest.mark.parametrize("seed", range(6))
def test_archs_off_the_grid_equal_the_closed_form(seed, rng):
    rng.seed(seed)
    groups = rng.choice([1, 2])
    arch = mf.make(
        widths=sorted(8 * rng.randint(2, 20) for _ in range(5)),
        depths=[rng.randint(1, 3) for _ in range(5)],
        expands=[rng.randint(1, 6) for _ in range(5)],
        stem=4 * rng.randint(2, 6),
        tokens=rng.randint(1, 9),
        dim=16 * rng.randint(2, 12),
        features=rng.randint(100, 2000),
        lite=(rng.randint(1, 4), rng.choice([1, 2])),
        kernel=rng.choice([3, 5, 7]),
        groups=groups,
        bridges=rng.choice([True, False]),
        side=rng.choice([160, 224]),
        classes=rng.randint(2, 2000),
    )
    cost = cost_of(arch)
    assert (cost.params, cost.macs) == closed_form(arch)


def closed_form(arch):
    """Parameters and MACs, from the formula of each part; c and side are followed from block to block."""
    c, side = arch.input_shape[:2]
    params, macs, tokens, d = 0, 0, 0, 0

    def steering(channels):
        return d * (d // 4) + d // 4 * 2 * channels, d * (d // 4) + d // 4 + d // 4 * 2 * channels + 2 * channels

    for block in itertools.chain(*arch.stages):
        match block:
            case mf.MobileStem(cout):
                params += c * 9 * cout + 2 * cout
                side //= 2
                macs += c * 9 * cout * side**2
                c = cout
            case mf.Lite(cout, e, stride, g):
                side //= stride
                params += 11 * e * c + e * c * cout // g + 2 * cout
                macs += (9 * e * c + e * c * cout // g) * side**2
                c = cout
            case mf.Tokens(tokens, d):
                params += tokens * d
            case mf.BridgeIn():
                params += 2 * (d * c + c) + c * d + d + 2 * d
                macs += 3 * tokens * d * c + 2 * tokens * side**2 * c
            case mf.Former():
                params += 6 * d * d + 9 * d
                macs += 6 * tokens * d * d + 2 * tokens**2 * d
            case mf.Mobile(e, k, cout, g):
                h = e * c
                params += c * h // g + 2 * h + (k * k + 2) * h + h * cout // g + 2 * cout + 2 * steering(h)[1]
                macs += (c * h // g + k * k * h + h * cout // g) * side**2 + 2 * steering(h)[0]
                c = cout
            case mf.MobileDown(cout, (e1, e2), k, g):
                side //= 2
                for h in (e1 * c, e2 * cout):
                    params += (k * k + 2) * h + h * cout // g + 2 * cout + steering(h)[1]
                    macs += (k * k * h + h * cout // g) * side**2 + steering(h)[0]
                c = cout
            case mf.BridgeOut():
                params += 2 * (d * c + c)
                macs += 2 * tokens * d * c + 2 * tokens * side**2 * c
            case mf.WidePooled(g):
                params += c * 6 * c // g + 12 * c
                macs += c * 6 * c // g * side**2
            case mf.Joined(features):
                params += (6 * c + d) * features + 3 * features
                macs += (6 * c + d) * features
                c = features
            case mf.Logits(classes):
                params += (c + 1) * classes
                macs += c * classes
            case _:
                raise AssertionError(block)
    return params, macs


def made(block, *shapes):
    """The block's module with weights that matter, in eval mode and float64."""
    return randomize(block.module(*(Shape(*shape) for shape in shapes))).double().eval()


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def weights_of(module):
    """Parameters and statistics by the end of their names."""
    return {name.removeprefix("body."): value for name, value in module.state_dict().items()}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def hard_sigmoid(x):
    return (x + 3).clamp(0, 6) / 6


def attend(query, keys, values, heads):
    """Attention of (M, C) to (T, C), head by head, scaled by the root of the channels of a head."""
    size = query.shape[1] // heads
    parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
    return torch.cat([(query[:, p] @ keys[:, p].T / size**0.5).softmax(1) @ values[:, p] for p in parts], 1)


def test_tokens_read_the_map_as_the_formula_says():
    module, z, x = made(mf.BridgeIn(), (2, 3, 8), (2, 6, 4, 5)), normal(2, 3, 8), normal(2, 6, 4, 5)
    w = weights_of(module)
    got, first = module(z, x)
    for image in range(2):
        pixels = x[image].flatten(1).T  # (H * W, C)
        query, gate = linear(w, "reader.body.body.query_gate", z[image]).split(6, 1)
        read = attend(query, pixels, pixels, heads=2) * 2 * hard_sigmoid(gate)
        expected = layer_norm(w, "layers.0.body", z[image] + linear(w, "reader.body.body.out", read))
        torch.testing.assert_close(got[image], expected)
        torch.testing.assert_close(first[image], expected[0])


def test_the_former_attends_and_transforms_with_norms_behind_the_sums():
    module, z = made(mf.Former(), (2, 5, 16)), normal(2, 5, 16)
    w = weights_of(module)
    got, first = module(z)
    for image in range(2):
        query = linear(w, "reader.body.body.query", z[image])
        read = linear(w, "reader.body.body.out", attend(query, z[image], z[image], heads=4))
        middle = layer_norm(w, "layers.0.body", z[image] + read)
        hidden = linear(w, "layers.1.body.0.body.0", middle)
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2  # GELU
        expected = layer_norm(w, "layers.2.body", middle + linear(w, "layers.1.body.1.body", hidden))
        torch.testing.assert_close(got[image], expected)
        torch.testing.assert_close(first[image], expected[0])


def test_the_map_reads_the_tokens_as_the_formula_says():
    module, x, z = made(mf.BridgeOut(), (2, 6, 4, 5), (2, 3, 8)), normal(2, 6, 4, 5), normal(2, 3, 8)
    got = module(x, z)
    for image in range(2):
        pixels = x[image].flatten(1).T
        key, value = linear(weights_of(module), "body.body.key_value", z[image]).split(6, 1)
        expected = pixels + attend(pixels, key, value, heads=2)
        torch.testing.assert_close(got[image].flatten(1).T, expected)


def dynamic_relu(w, name, x, first):
    """max(a1 x, a2 x) with the slopes of every channel, channel by channel."""
    u = hard_sigmoid(linear(w, f"{name}.body.slopes", linear(w, f"{name}.body.reduce", first).relu()))
    y = torch.empty_like(x)
    for image, channel in itertools.product(range(x.shape[0]), range(x.shape[1])):
        u1, u2 = u[image, channel], u[image, x.shape[1] + channel]
        a1, a2 = 2 * (u1 - 0.5) + 1, 2 * (u2 - 0.5)
        y[image, channel] = torch.maximum(a1 * x[image, channel], a2 * x[image, channel])
    return y


def conv_norm(w, name, x, **options):
    x = F.conv2d(x, w[f"{name}.body.0.weight"], padding=w[f"{name}.body.0.weight"].shape[2] // 2, **options)
    stats = (w[f"{name}.body.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *stats, eps=1e-5)


def shuffled(x, groups):
    """Channel j of group i goes to place j * groups + i."""
    size = x.shape[1] // groups
    return x[:, [i * size + j for j in range(size) for i in range(groups)]]


def test_a_dynamic_relu_follows_its_formula():
    op = mf.DynamicReLU(8, 5)
    module, x, first = randomize(op.module()).double(), normal(2, 5, 3, 3), 4 * normal(2, 8)
    w = {f"act.{name}": value for name, value in module.state_dict().items()}
    torch.testing.assert_close(module(x, first), dynamic_relu(w, "act", x, first))


def test_a_dynamic_relu_starts_as_a_plain_relu():
    network = build(mf.SMALL.arch({name: choice.values[0] for name, choice in mf.SMALL.choices.items()}))
    module, x, first = network.stages[0][5].body.layers[0].layers[1].double(), normal(2, 72, 3, 3), normal(2, 64)
    assert isinstance(module.op, mf.DynamicReLU)
    assert (module(x, first) - x.relu()).abs().max() < 0.01


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("cout", [8, 12])
def test_a_mobile_block_follows_its_formula(cout, groups):
    block = mf.Mobile(expand=3, kernel=5, cout=cout, groups=groups)
    module, x, first = made(block, (2, 8, 6, 6), (2, 16)), normal(2, 8, 6, 6), 3 * normal(2, 16)
    w = {name.removeprefix("body."): value for name, value in weights_of(module).items()}
    places = iter(range(7))

    def layer():
        return f"layers.{next(places)}"

    def shuffle(y):
        return shuffled(y, next(places) and groups) if groups > 1 else y

    t = shuffle(conv_norm(w, layer(), x, groups=groups))
    t = dynamic_relu(w, layer(), t, first)
    t = conv_norm(w, layer(), t, groups=24)
    t = dynamic_relu(w, layer(), t, first)
    t = shuffle(conv_norm(w, layer(), t, groups=groups))
    torch.testing.assert_close(module(x, first), t + x if cout == 8 else t)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_downsampling_block_follows_its_formula(groups):
    block = mf.MobileDown(12, (3, 2), kernel=3, groups=groups)
    module, x, first = made(block, (2, 8, 6, 6), (2, 16)), normal(2, 8, 6, 6), 3 * normal(2, 16)
    w = weights_of(module)
    at = [0, 1, 2, 3] if groups > 1 else [0, None, 1, 2]

    def pair(name, y, stride):
        y = conv_norm(w, f"{name}.layers.{at[0]}", y, groups=y.shape[1], stride=stride)
        y = shuffled(y, (8, 12)[stride == 1]) if groups > 1 else y
        y = dynamic_relu(w, f"{name}.layers.{at[2]}", y, first)
        return conv_norm(w, f"{name}.layers.{at[3]}", y, groups=groups)

    t = pair("layers.0", x, 2)
    assert t.shape == (2, 12, 3, 3)
    torch.testing.assert_close(module(x, first), t + pair("layers.1.body", t, 1))


def test_an_expanding_depthwise_convolution_makes_neighbouring_channels_of_one():
    module = made(mf.MobileDown(12, (3, 2), 3, 1), (1, 4, 6, 6), (1, 16))
    expanding = module.body.layers[0].layers[0].body[0]
    x = torch.zeros(1, 4, 6, 6, dtype=torch.float64)
    x[:, 2] = 1
    assert expanding(x).abs().amax((0, 2, 3)).nonzero().flatten().tolist() == [6, 7, 8]


def test_a_shuffle_deals_the_channels_of_the_groups_in_turn():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert mf.ChannelShuffle(2).module()(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert mf.ChannelShuffle(3).module()(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_the_26m_shuffles_where_the_official_code_does():
    calls = calls_of(mf.PRESETS["mobileformer-26m"])
    groups = [[op.row.unit.groups for op in call.ops if isinstance(op.row.unit, mf.ChannelShuffle)] for call in calls]
    expected = [[8], [4, 4], [12, 24], [4, 4], [24, 48], [4, 4], [4, 4], [64, 96], [4, 4], [4]]
    assert [found for found in groups if found] == expected


def test_the_lite_bottleneck_adds_its_input_where_it_fits():
    module, x = made(mf.Lite(4, groups=1), (2, 4, 6, 6)), normal(2, 4, 6, 6)
    w = weights_of(module)
    t = conv_norm(w, "body.0", x, groups=4).clamp(0, 6)
    torch.testing.assert_close(module(x), x + conv_norm(w, "body.1", t))
    down = made(mf.Lite(6, ratio=3, stride=2, groups=2), (2, 4, 6, 6))
    w = weights_of(down)
    t = shuffled(conv_norm(w, "0", x, groups=4, stride=2), 4).clamp(0, 6)
    torch.testing.assert_close(down(x), conv_norm(w, "2", t, groups=2))


@pytest.mark.parametrize("groups", [1, 4])
def test_the_head_pools_and_joins_the_first_token(groups):
    wide, x, first = made(mf.WidePooled(groups), (2, 8, 3, 3)), normal(2, 8, 3, 3), normal(2, 16)
    hidden = made(mf.Joined(10), (2, 48), (2, 16))
    w = weights_of(wide)
    y = conv_norm(w, "1" if groups > 1 else "0", shuffled(x, groups), groups=groups).clamp(0, 6).mean((2, 3))
    torch.testing.assert_close(wide(x), y)
    w = weights_of(hidden)
    t = linear(w, "body.linear", torch.cat([y * hard_sigmoid(y), first], 1))
    t = F.batch_norm(t, *(w[f"body.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))
    torch.testing.assert_close(hidden(y, first), t * hard_sigmoid(t))


def small(**changes):
    """A net of two stages that shows every kind of block."""
    sizes = {"widths": (16, 24), "depths": (2, 2), "expands": (2, 3), "strides": (2, 1), "side": 32, "classes": 5}
    return mf.make(**({"stem": 8, "tokens": 3, "dim": 16, "features": 32} | sizes | changes))


def test_tokens_are_updated_before_the_convolutions_of_their_block():
    network = randomize(build(small())).double().eval()
    stem, lite, tokens, *blocks = itertools.chain(*network.stages)
    *blocks, last_bridge, wide, hidden, logits = blocks
    image = normal(2, 3, 32, 32)
    with torch.no_grad():
        x, (z, _) = lite(stem(image)), tokens()
        for bridge_in, former, mobile, bridge_out in zip(*[iter(blocks)] * 4, strict=True):
            z, _ = bridge_in(z, x)  # the map that comes in
            z, _ = former(z)
            x = mobile(x, z[:, 0])  # steered by the first token as it is now
            x = bridge_out(x, z)  # the map that goes out, its residual added
        z, _ = last_bridge(z, x)
        torch.testing.assert_close(network(image), logits(hidden(wide(x), z[:, 0])))


@pytest.mark.parametrize("bridges", [True, False])
def test_every_image_of_a_batch_starts_with_the_same_tokens(bridges):
    network = randomize(build(small(bridges=bridges))).double().eval()
    x = normal(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(image[None]) for image in x]))


@pytest.mark.parametrize("groups", [1, 4])
def test_all_batch_norms_fold(groups):
    network = randomize(build(small(groups=groups))).double().eval()
    assert any(isinstance(part, nn.BatchNorm1d) for part in network.modules())
    deployed, x = fuse(network), normal(2, 3, 32, 32)
    assert not any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in deployed.modules())
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), network(x))


def test_without_bridges_only_the_mobile_parts_are_left():
    first = {name: choice.values[0] for name, choice in mf.SPACE.choices.items()}
    params = first | {name: False for name in first if name.endswith("bridges")}
    kinds = [type(block) for block in itertools.chain(*mf.SPACE.arch(params).stages)]
    assert kinds.count(mf.BridgeIn) == 1  # in front of the head
    assert kinds.count(mf.Tokens) == 1
    assert mf.Former not in kinds
    assert mf.BridgeOut not in kinds
    one_off = mf.SPACE.arch(first | {"stage3.bridges": False})
    assert [mf.Former in map(type, stage) for stage in one_off.stages] == [True, True, False, True, True, False]


def test_illegal_combinations_of_shared_choices_are_settled():
    first = {name: choice.values[0] for name, choice in mf.SPACE.choices.items()}

    def arch(**shared):
        return mf.SPACE.arch(first | shared)

    assert arch(tokens=1, dim=192) == arch(tokens=1, dim=128)
    assert arch(tokens=8, dim=192) == arch(tokens=8, dim=128)
    assert arch(tokens=4, dim=192) != arch(tokens=4, dim=128)
    assert arch(tokens=6, dim=192, groups=4) == arch(tokens=6, dim=192, groups=1)
    assert arch(tokens=1, dim=128, groups=4) == arch(tokens=1, dim=128, groups=1)
    assert arch(tokens=3, dim=128, groups=4) != arch(tokens=3, dim=128, groups=1)


def test_a_net_off_the_grid_is_no_point_of_the_space():
    sizes = {"depths": (2, 2, 2, 2, 3), "stem": 16, "tokens": 6, "dim": 192, "features": 1920}
    widths, expands = (24, 48, 96, 128, 192), (4, 4, 4, 6, 6)
    assert mf.make(widths, expands=expands, **sizes) in mf.SPACE
    assert mf.make((28, *widths[1:]), expands=expands, **sizes) not in mf.SPACE
    assert mf.make(widths, expands=(5, *expands[1:]), **sizes) not in mf.SPACE
    assert mf.make(widths, expands=expands, **(sizes | {"features": 1000})) not in mf.SPACE
    assert mf.make(widths, expands=expands, **(sizes | {"tokens": 5})) not in mf.SPACE
    assert mf.make((*widths[:2], 48, *widths[3:]), expands=expands, **sizes) not in mf.SPACE  # falls back two places


def test_groups_go_with_the_narrowest_width_of_a_stage_only():
    first = {name: choice.values[0] for name, choice in mf.SPACE.choices.items()}
    arch = mf.SPACE.arch(first | {"tokens": 3, "groups": 4, "stage4.width": 88, "stage5.width": 128})
    groups = [block.groups for block in itertools.chain(*arch.stages) if "groups" in block.names()]
    assert groups == [4, 4, 4, 4, 1, 1, 1]


def test_parts_of_weights_add_up():
    for op in (mf.MapAttention(8, 6), mf.TokenAttention(8, 6), mf.DynamicReLU(8, 5), mf.HiddenLayer(6, 4, 9)):
        state = op.body().state_dict()
        parts = {(key, axis): sizes for key, axes in op.parts().items() for axis, sizes in axes.items()}
        assert parts
        assert all(sum(sizes) == state[key].shape[axis] for (key, axis), sizes in parts.items())


def test_a_child_takes_the_leading_slopes_of_both_kinds():
    large, child = build(small()), small(widths=(12, 16), tokens=2, dim=8)
    cut = slices(large, child)
    name = "stages.1.2.body.layers.1.body.slopes.weight"  # of 16 * 3 channels, the child has 12 * 3; dim 16 and 8
    rows = [*range(36), *range(48, 84)]
    assert torch.equal(cut[name], large.state_dict()[name][rows, :2])
    outputs = functional_call(build(child).eval(), cut, (torch.randn(2, 3, 32, 32),))
    assert outputs.shape == (2, 5)


def test_weights_start_as_in_the_published_code():
    network = build(small(widths=(64, 96), dim=64))
    expand = network.stages[1][2].body.layers[0].body[0]
    query = network.stages[1][1].body.reader.body.body.query
    assert isinstance(expand, nn.Conv2d)
    assert expand.weight.std().item() == pytest.approx((2 / expand.out_channels) ** 0.5, rel=0.05)
    assert query.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not query.bias.any()
    assert network.stages[0][2].body.table.std().item() == pytest.approx(1, rel=0.3)


def test_drop_path_leaves_the_mlp_of_the_former_and_the_lite_bottleneck_alone():
    network = build(small())
    set_drop_path(network, 0.3)
    former, lite = network.stages[1][5].body, network.stages[0][1].body
    rates = [part.drop_path for part in former.modules() if isinstance(part, Residual)]
    assert rates[0] > 0
    assert rates[1] == lite.drop_path == 0
