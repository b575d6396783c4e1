"""EfficientFormer against its published counts and against timm's implementation of it."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from nas.core.arch import calls_of
from nas.core.ops import Residual
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.networks.building import build, cost_of, fuse
from search_spaces import efficientformer as ef
from tests.small import randomize

# parameters and conv+linear+matmul MACs of timm 1.0.31 and the official code; parts: stem, stages, last norm, heads
GOLDEN = {
    "l1": (12_289_928, 1291.3e6, (11_232, 57_744, 192_480, 2_625_504, 8_504_072, 896, 898_000)),
    "l3": (31_406_000, 3906.6e6, (19_584, 135_424, 607_104, 10_265_280, 19_351_584, 1_024, 1_026_000)),
    "l7": (82_229_328, 10_119e6, (43_200, 452_160, 1_955_520, 22_015_872, 56_223_040, 1_536, 1_538_000)),
}


@pytest.mark.parametrize("size", GOLDEN)
def test_presets_have_the_published_counts(size):
    params, macs, parts = GOLDEN[size]
    cost = cost_of(ef.PRESETS[f"efficientformer-{size}"])
    assert cost.params == params
    assert cost.macs == pytest.approx(macs, rel=5e-5)
    calls = calls_of(ef.PRESETS[f"efficientformer-{size}"])
    by_stage = dict.fromkeys("1234", 0)
    for call in calls[1:-2]:
        by_stage[call.stage] += params_of_unit(call.row)
    ends = [params_of_unit(call.row) for call in (calls[0], calls[-2], calls[-1])]
    assert (ends[0], *by_stage.values(), *ends[1:]) == parts


def closed_form(widths, depths, tail, ratio):
    """Parameters and MACs of the sheet's formulas at 224 and 1000 classes, its 4 for the MLP ratio made a variable."""
    params, macs, side = 0, 0, 224
    half = widths[0] // 2
    params += 3 * half * 9 + 3 * half + half * widths[0] * 9 + 3 * widths[0]
    macs += 112**2 * 27 * half + 56**2 * 9 * half * widths[0]
    side = 56
    for stage, (c, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            side //= 2
            params += widths[stage - 1] * c * 9 + 3 * c
            macs += side**2 * 9 * widths[stage - 1] * c
        in_tail = max(0, min(depth, tail - sum(depths[stage + 1 :])))
        for block in range(depth):
            n = side**2
            if block < depth - in_tail:
                params += 2 * ratio * c * c + ratio * 3 * c + 3 * c + 2 * c
                macs += 2 * ratio * c * c * n
            else:
                params += 2 * ratio * c * c + (ratio + 1) * c + 6 * c
                params += c * 1536 + 1536 + 1024 * c + c + 8 * n
                macs += n * (2 * ratio * c * c + 2560 * c) + n * n * 8 * 160
    c = widths[-1]
    return params + 2 * c + 2 * (1000 * c + 1000), macs + 2 * 1000 * c


@pytest.mark.parametrize("size", GOLDEN)
def test_the_closed_form_gives_the_published_parameters(size):
    sizes = {"l1": ((48, 96, 224, 448), (3, 2, 6, 4), 1), "l3": ((64, 128, 320, 512), (4, 4, 12, 6), 4)}
    sizes["l7"] = ((96, 192, 384, 768), (6, 6, 18, 8), 8)
    assert closed_form(*sizes[size], 4)[0] == GOLDEN[size][0]


@pytest.mark.parametrize("seed", range(8))
def test_random_configurations_equal_the_closed_form(seed, rng):
    rng.seed(seed)
    widths = [16 * rng.randint(low, low + 6) for low in (2, 4, 8, 16)]
    depths = [rng.randint(1, 4) for _ in range(4)]
    tail, ratio = rng.randint(0, depths[2] + depths[3]), rng.choice([2, 3, 4])
    cost = cost_of(ef.make(widths, depths, tail, ratios=[ratio] * 4))
    assert (cost.params, cost.macs) == closed_form(widths, depths, tail, ratio)


@pytest.mark.parametrize("size", GOLDEN)
def test_outputs_equal_timms_under_the_same_weights(size):
    arch = ef.PRESETS[f"efficientformer-{size}"]
    theirs = timm.create_model(f"efficientformer_{size}")
    randomize(theirs)
    for name, parameter in theirs.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    ours = build(arch)
    ours.load_state_dict(ef.from_timm(theirs.state_dict(), arch))  # strict: every tensor has its place
    theirs, ours = theirs.double().eval(), ours.double().eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
        for model in (ours, fuse(ours)):
            assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_weights_of_timm_fit_without_attention():
    """timm cannot run such a net to its end, since it norms the last map as if it were tokens: from there by hand."""
    arch = ef.make((16, 24, 32, 48), (1, 1, 2, 1), 0, side=64)
    theirs = timm.models.EfficientFormer(depths=(1, 1, 2, 1), embed_dims=(16, 24, 32, 48), num_vit=0)
    randomize(theirs)
    ours = build(arch)
    ours.load_state_dict(ef.from_timm(theirs.state_dict(), arch))
    theirs, ours = theirs.double().eval(), ours.double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pooled = theirs.norm(theirs.stages(theirs.stem(x)).flatten(2).transpose(1, 2)).mean(1)
        expected = (theirs.head(pooled) + theirs.head_dist(pooled)) / 2
        assert (ours(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_the_two_heads_are_both_trained():
    network = build(ef.SMALL.arch({name: choice.values[0] for name, choice in ef.SMALL.choices.items()})).train()
    labels, teacher = network(torch.randn(2, 3, 32, 32))
    assert labels.shape == teacher.shape == (2, 10)


def test_weights_start_as_the_paper_has_them():
    network = build(ef.make((32, 64, 128, 256), (1, 1, 2, 2), 1))
    mb4d, mb3d = network.stages[3][1].body, network.stages[3][2].body
    for layer in (mb4d[1].body[0].body[0], mb4d[1].body[1].body[0], mb3d[2].body[1].body[0]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    stem = network.stages[0][0].body[0].body[0]
    assert stem.weight.abs().max().item() == pytest.approx(1 / math.sqrt(27), rel=0.05)  # PyTorch's default
    scales = [residual.scale.body.gamma for residual in network.modules() if isinstance(residual, Residual)]
    assert torch.cat(scales).unique().tolist() == pytest.approx([1e-5])


def test_drop_path_grows_linearly_over_the_blocks():
    network = build(ef.make((32, 64, 128, 256), (2, 1, 1, 1), 1), drop_path=0.4)
    rates = [residual.drop_path for residual in network.modules() if isinstance(residual, Residual)]
    assert rates == pytest.approx([rate for rate in (0.0, 0.1, 0.2, 0.3, 0.4) for _ in range(2)])


def test_attention_reaches_into_stage_3_and_comes_back_to_a_map():
    arch = ef.make((32, 64, 128, 256), (1, 1, 2, 2), 3)
    shapes = [[str(call.outputs[0]) for call in calls_of(arch) if call.stage == stage] for stage in ("3", "4")]
    assert shapes == [["1x128x14x14", "1x128x14x14", "1x196x128"], ["1x256x7x7", "1x49x256", "1x49x256"]]
    assert (
        sum(macs_of_unit(call.row) for call in calls_of(arch)) == closed_form((32, 64, 128, 256), (1, 1, 2, 2), 3, 4)[1]
    )
