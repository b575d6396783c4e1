"""T2T-ViT against its published counts and against its definition written out."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import calls_of
from nas.core.errors import InputError
from nas.core.ops import Residual, Row, Shape
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.networks.building import build, cost_of, fuse
from search_spaces import t2t
from tests.small import assert_close

# all parameters, those with a gradient, and MACs in millions of the official code at 224
GOLDEN = {
    "7": (4_310_222, 4_255_694, "1146.9"),
    "10": (5_889_230, 5_834_702, "1516.3"),
    "12": (6_941_902, 6_887_374, "1762.6"),
    "14": (21_545_550, 21_465_806, "4783.5"),
    "t-14": (21_541_070, 21_465_422, "6088.7"),
    "19": (39_177_422, 39_085_070, "8479.7"),
    "t-19": (39_172_942, 39_084_686, "9784.9"),
    "24": (64_105_934, 64_000_974, "13661.9"),
    "t-24": (64_101_454, 64_000_590, "14967.1"),
}
# other sizes: arguments of make, parameters, MACs in millions
OTHERS = [
    ((384, 14), {"ratio": 3, "head_dim": 12}, 21_545_550, "4783.5"),  # 14-resnext, 32 heads
    ((768, 4), {"ratio": 3}, 25_156_302, "5229.3"),  # 14-wide; fvcore counts 7,020 more in einsum and shows 5229.4
    ((384, 14), {"ratio": 3, "side": 384}, 21_691_470, "16370.1"),
    ((256, 7), {"side": 160}, 4_285_646, "552.7"),
    ((256, 7), {"side": 192}, 4_296_910, "816.8"),
    ((256, 7), {"side": 256}, 4_325_582, "1551.8"),
]


def stage_form(kind, d, e, t):
    """Parameters and MACs of a token stage of t tokens of d channels."""
    m = e // 2
    params, macs = 3 * e * d + 2 * d + 3 * (e * e + e) + 2 * e, t * (3 * e * d + 3 * e * e)
    if kind == "performer":
        return params + 3 * e + m * e, macs + t * (4 * m * e + m)
    return params, macs + 2 * t * t * e


def closed_form(width, depth, kind, r, e, side):
    """Parameters and MACs of the sheet's formulas at 1000 classes."""
    n0, n1, n2 = ((side // stride) ** 2 for stride in (4, 8, 16))
    n = n2 + 1
    first, second = stage_form(kind, 147, e, n0), stage_form(kind, 9 * e, e, n1)
    params = first[0] + second[0] + (9 * e + 1) * width + (1 + n + 2 + 1000) * width + 1000
    params += depth * ((4 + 2 * r) * width**2 + (6 + r) * width)
    macs = first[1] + second[1] + n2 * 9 * e * width + 1000 * width
    return params, macs + depth * (n * (4 + 2 * r) * width**2 + 2 * n * n * width)


def millions(macs):
    return f"{macs / 1e6:.1f}"


def lively(model, seed=0):
    """Weights that let every part matter: small enough that random features do not all vanish."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad:
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                is_norm = tensor.ndim == 1 and name.endswith("weight")
                tensor.copy_(1 + 0.3 * noise if is_norm else 0.5 * noise / tensor.shape[-1] ** 0.5)
    return model


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", GOLDEN)
def test_presets_have_the_published_counts(size):
    params, trainable, macs = GOLDEN[size]
    arch = t2t.PRESETS[f"t2t-vit-{size}"]
    cost = cost_of(arch)
    assert (cost.params, millions(cost.macs)) == (params, macs)
    with torch.device("meta"):
        network = build(arch)
    assert sum(each.numel() for each in network.parameters() if each.requires_grad) == trainable


@pytest.mark.parametrize(("sizes", "more", "params", "macs"), OTHERS)
def test_other_sizes_have_the_counts_of_the_sheet(sizes, more, params, macs):
    cost = cost_of(t2t.make(*sizes, **more))
    assert (cost.params, millions(cost.macs)) == (params, macs)


@pytest.mark.parametrize("seed", range(6))
def test_random_configurations_equal_the_closed_form(seed):
    rng = random.Random(seed)
    width, depth, ratio = 16 * rng.randint(1, 8), rng.randint(1, 5), rng.randint(1, 4)
    kind, tokens, side = rng.choice(list(t2t.TOKEN_STAGES)), 8 * rng.randint(1, 8), 16 * rng.randint(2, 7)
    cost = cost_of(t2t.make(width, depth, kind=kind, ratio=ratio, head_dim=16, tokens=tokens, side=side))
    assert (cost.params, cost.macs) == closed_form(width, depth, kind, ratio, tokens, side)


@pytest.mark.parametrize(
    ("kind", "params", "macs"),
    [
        ("performer", (43_366, 126_592), ("152.84", "102.79")),
        ("transformer", (41_126, 124_352), ("1385.86", "175.01")),
    ],
)
def test_token_stages_have_the_counts_of_the_sheet(kind, params, macs):
    rows = [call.row for call in calls_of(t2t.make(256, 1, kind=kind))[:2]]
    assert tuple(params_of_unit(row) for row in rows) == params
    assert tuple(f"{macs_of_unit(row) / 1e6:.2f}" for row in rows) == macs


def reference(x, state, arch):
    """Logits from weights, step by step as the sheet has it, for nets of `make`."""

    def linear(x, key):
        return F.linear(x, state[f"{key}.weight"], state.get(f"{key}.bias"))

    def norm(x, key):
        return F.layer_norm(x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"], 1e-5)

    def mlp(x, key, places):
        return linear(F.gelu(linear(x, f"{key}.{places[0]}.body.0")), f"{key}.{places[1]}.body")

    def attention(x, key, kind):
        width = x.shape[-1]
        if kind == "transformer":
            q, k, v = linear(x, f"{key}.qkv").chunk(3, -1)
            weights = (q @ k.mT * width**-0.5).softmax(-1)
        else:
            k, q, v = linear(x, f"{key}.kqv").chunk(3, -1)
            rows = state[f"{key}.rows"]
            k, q = (((z @ rows.T) - (z * z).sum(-1, keepdim=True) / 2).exp() / len(rows) ** 0.5 for z in (k, q))
            weights = q @ k.mT
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
        return v + linear(weights @ v, f"{key}.proj")

    def grid(x):
        return x.mT.unflatten(2, (round(x.shape[1] ** 0.5), -1))

    for number, block in enumerate(arch.stages[0]):
        key = f"stages.0.{number}.body"
        padding = {(7, 4): 2, (3, 2): 1}[block.kernel, block.stride]
        x = F.unfold(x if x.ndim == 4 else grid(x), block.kernel, padding=padding, stride=block.stride).mT
        x = attention(norm(x, f"{key}.1.body"), f"{key}.2.body", block.kind)
        x = x + mlp(norm(x, f"{key}.3.body.0.body"), f"{key}.3.body", (1, 2))
    weight = state["stages.1.0.body.1.body.weight"]  # the last split and its Linear are one convolution
    x = F.conv2d(grid(x), weight.view(len(weight), -1, 3, 3), state["stages.1.0.body.1.body.bias"], 2, 1)
    x = torch.cat([state["stages.1.0.body.2.body.token"].expand(len(x), -1, -1), x.flatten(2).mT], 1)
    x = x + state["stages.1.0.body.2.body.positions"]
    for number, block in enumerate(arch.stages[1][1:], 1):
        key = f"stages.1.{number}.body"
        q, k, v = linear(norm(x, f"{key}.0.body.0.body"), f"{key}.0.body.1.body.qkv").chunk(3, -1)
        q, k, v = (part.unflatten(2, (-1, block.head_dim)).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.mT * block.head_dim**-0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{key}.0.body.1.body.proj")
        x = x + mlp(norm(x, f"{key}.1.body.0.body"), f"{key}.1.body", (1, 2))
    return linear(norm(x[:, 0], "stages.2.0.body.norm.body"), "stages.2.1.body.body.heads.0")


@pytest.mark.parametrize("kind", t2t.TOKEN_STAGES)
def test_outputs_equal_the_definition_written_out(kind):
    arch = t2t.make(48, 2, kind=kind, ratio=3, head_dim=16, tokens=12, side=64, classes=7)
    network = lively(build(arch)).double().eval()
    x = numbers(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference(x, network.state_dict(), arch)
        assert expected.std() > 0.1
        assert_close(network(x), expected, 1e-9)
        assert_close(fuse(network)(x), expected, 1e-9)


def test_a_performer_has_a_bias_and_a_transformer_has_none():
    names = {kind: set(op(27, 8).body().state_dict()) for kind, op in t2t.TOKEN_STAGES.items()}
    assert names["performer"] == {"kqv.weight", "kqv.bias", "proj.weight", "proj.bias", "rows"}
    assert names["transformer"] == {"qkv.weight", "proj.weight", "proj.bias"}


def test_random_features_are_orthogonal_rows_of_the_length_of_softmax():
    rows = t2t.PerformerAttention(147, 64).body().rows
    assert not rows.requires_grad
    assert_close(rows @ rows.T, 32 * torch.eye(32), 1e-5)


def test_random_features_follow_the_seed():
    first, again, other = (build(t2t.SMALL.arch(SMALLEST), seed=seed).state_dict() for seed in (1, 1, 2))
    (key,) = [name for name in first if name.startswith("stages.0.0.") and name.endswith("rows")]
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


SMALLEST = {name: choice.values[0] for name, choice in t2t.SMALL.choices.items()}


def test_a_performer_keeps_its_precision_under_autocast():
    op = lively(t2t.PerformerAttention(27, 32).body())
    x = 4 * torch.randn(1, 16, 27, generator=torch.Generator().manual_seed(0))
    expected = op.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op(x), expected)


def test_only_performers_drop_out_and_only_in_training():
    for kind, drops in (("performer", True), ("transformer", False)):
        network = lively(build(t2t.make(32, 1, kind=kind, head_dim=16, tokens=16, side=32)))
        x = torch.randn(1, 3, 32, 32)
        twice = [network.train()(x), network(x)]
        assert torch.equal(*twice) != drops
        assert torch.equal(network.eval()(x), network(x))


def test_positions_are_sines_and_cosines_of_the_place_in_the_row_of_tokens():
    body = t2t.ClassAndSinusoid(6, 10).body()
    assert not body.positions.requires_grad
    assert body.positions.shape == (1, 11, 6)
    for p in (0, 1, 10):
        angles = [p / 10000 ** (2 * (i // 2) / 6) for i in range(6)]
        expected = [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]
        assert body.positions[0, p].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("kernel", "stride", "first"), [(3, 2, -1), (7, 4, -2), (3, 1, -1)])
def test_a_soft_split_gives_the_neighbourhood_of_every_position(kernel, stride, first):
    image = numbers(1, 2, 8, 8)
    op = t2t.SoftSplit(8, kernel, stride).body()
    tokens = op(image)
    assert tokens.shape == (1, (8 // stride) ** 2, 2 * kernel**2)
    assert torch.equal(op(image.flatten(2).mT), tokens)
    for number in range(tokens.shape[1]):
        top, left = (first + stride * place for place in divmod(number, 8 // stride))
        for value, (channel, row, column) in zip(tokens[0, number], grid_of(2, kernel), strict=True):
            y, x = top + row, left + column
            assert value == (image[0, channel, y, x] if 0 <= y < 8 and 0 <= x < 8 else 0)


def grid_of(channels, kernel):
    return [(c, row, column) for c in range(channels) for row in range(kernel) for column in range(kernel)]


def test_drop_path_begins_behind_the_token_stages():
    network = build(t2t.make(32, 3, head_dim=16, tokens=16, side=32), drop_path=0.1)
    rates = [part.drop_path for part in network.modules() if isinstance(part, Residual)]
    assert rates == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1])


def test_an_unknown_token_stage_is_named():
    with pytest.raises(InputError, match="did you mean 'performer'"):
        t2t.TokenStage(kind="performr", cout=8).build(Shape(1, 3, 32, 32))


def test_the_first_token_stage_takes_the_image_and_the_second_tokens():
    first, second = (call.row for call in calls_of(t2t.PRESETS["t2t-vit-7"])[:2])
    assert first == Row(t2t.TokenStage(7, 4, "performer", 64), (Shape(1, 3, 224, 224),))
    assert second == Row(t2t.TokenStage(3, 2, "performer", 64), (Shape(1, 3136, 64),))
