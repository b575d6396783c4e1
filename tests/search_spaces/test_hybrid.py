from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

import search_spaces
from nas.core.arch import calls_of, steps_of
from nas.core.blocks import AsMap
from nas.core.errors import InputError
from nas.core.ops import Row, Shape
from nas.core.space import Either, Repeat
from nas.core.tracing import calls_of_unit, macs_of_unit
from nas.networks.building import build, cost_of, fuse
from search_spaces import dynamicvit, hybrid
from search_spaces.dynamicvit import BarePrune
from search_spaces.efficientformer import MB3D, MB4D, Stem
from search_spaces.hybrid import PrunedMB3D, PrunedPooled, ShuffledMB3D
from search_spaces.mobileformer import BridgeIn, Former, Mobile, MobileDown, Tokens
from search_spaces.mobilevit import MobileViTv1, MobileViTv3
from search_spaces.nextvit import NCB, NTB
from tests.small import assert_close, lively, randomize

FITTING = [
    *("efficientformer-l1", "efficientformer-l3", "efficientformer-l7"),
    *("nextvit-s", "nextvit-b", "nextvit-l"),
    *("mobileformer-508m", "mobileformer-294m"),
    *("mobilevit-xs", "mobilevit-s"),
]


def first_of(space, **wanted):
    """The arch of every first value, but for those named: `stage2_kind` for `stage2.kind`."""
    params = {name: choice.values[0] for name, choice in space.choices.items()}
    return space.arch(params | {name.replace("_", ".", 1): value for name, value in wanted.items()})


@pytest.mark.parametrize("name", FITTING)
def test_a_published_network_is_a_point_with_its_published_cost(name):
    preset = dataclasses.replace(search_spaces.presets()[name], input_shape=hybrid.SPACE.input_shape)
    arch = hybrid.from_family(preset)
    assert hybrid.SPACE.arch(hybrid.SPACE.params_of(arch)) == arch
    assert cost_of(arch) == cost_of(preset)
    assert [call.row for call in calls_of(arch)] == [call.row for call in calls_of(preset)]


def test_networks_that_mix_families_are_points(rng):
    kinds = {"stage1.kind": "nextvit", "stage2.kind": "mobileformer", "stage3.kind": "mb3d", "stage4.kind": "inverted"}
    params = {name: choice.values[0] for name, choice in hybrid.SPACE.choices.items()} | kinds
    arch = hybrid.SPACE.arch(params)
    classes = [{type(block) for block in stage} for stage in arch.stages]
    assert NCB in classes[0]
    assert Mobile in classes[1] or MobileDown in classes[1]
    assert MB3D in classes[2]
    assert arch in hybrid.SPACE


def test_tokens_come_in_once_and_pass_other_stages_untouched():
    kinds = {"stage1_kind": "mobileformer", "stage2_kind": "mb4d", "stage3_kind": "mobileformer"}
    arch = first_of(hybrid.SMALL, **kinds, stage3_bridges=True, tokens=6)
    assert sum(isinstance(block, Tokens) for stage in arch.stages for block in stage) == 1
    rows = [call.row for call in calls_of(arch) if call.stage == "2"]
    assert all(len(row.inputs) == 1 for row in rows)
    (entered, *_), *_ = ([c for c in calls_of(arch) if isinstance(c.row.unit, kind)] for kind in (BridgeIn, Former))
    assert entered.row.inputs[0] == (1, 6, 64)

    network = build(arch).eval()
    streams = {"x": torch.randn(2, 3, 32, 32)}
    for block in network.stages[0]:
        block.advance(streams)
    before = streams["z"]
    for block in network.stages[1]:
        block.advance(streams)
    assert streams["z"] is before


def test_tokens_of_attention_are_taken_back_to_a_map_and_that_is_priced():
    arch = first_of(hybrid.SPACE, stage3_kind="mb3d", stage3_depth=2, stage3_attention=2, stage4_kind="mobileformer")
    (call,) = [call for call in steps_of(arch) if isinstance(call.row.unit, AsMap)]
    assert call.row.inputs == ((1, 196, 224),)
    assert call.outputs == ((1, 224, 14, 14),)
    assert call in calls_of(arch)
    flat = first_of(hybrid.SPACE, stage3_kind="mb4d", stage4_kind="mobileformer")
    assert not any(isinstance(call.row.unit, AsMap) for call in calls_of(flat))  # a map already: no op, no row


@pytest.mark.parametrize("space", [hybrid.SPACE, hybrid.SMALL], ids=lambda space: space.name)
def test_every_kind_stands_in_every_stage_that_offers_it(space):
    rng = random.Random(1)
    seen = {(index, type(b)) for _ in range(300) for index, s in enumerate(space.sample(rng).stages) for b in s}
    for index in range(len(space.stages)):
        for kind in (NCB, Mobile):
            assert (index, kind) in seen
    last = len(space.stages) - 1
    assert {(last, kind) for kind in (NTB, MobileViTv1, ShuffledMB3D, BarePrune, PrunedMB3D)} <= seen
    assert {index for index, kind in seen if kind is MobileViTv1} == set(range(1, last + 1))  # strides 8, 16 and 32
    assert {index for index, kind in seen if kind is BarePrune} == {last}


def test_the_head_is_that_of_the_last_stage():
    heads = {
        kind: [type(block).__name__ for block in first_of(hybrid.SMALL, stage3_kind=kind).stages[-1]]
        for kind in hybrid.SMALL.choices["stage3.kind"].values
    }
    assert heads == {
        "mb4d": ["Pooled", "Logits"],
        "mb3d": ["Pooled", "Logits"],
        "shuffle": ["Pooled", "Logits"],
        "nextvit": ["NextPooled", "Logits"],
        "mobileformer": ["BridgeIn", "WidePooled", "Joined", "Logits"],
        "mobilevit": ["WidenedMean", "Logits"],
        "inverted": ["NextPooled", "Logits"],
    }


def test_the_rows_of_many_samples_are_those_listed():
    rng = random.Random(2)
    seen = {call.row for _ in range(4000) for call in calls_of(hybrid.SMALL.sample(rng))}
    assert seen == set(hybrid.SMALL.rows())


def test_every_arch_of_the_new_kinds_is_listed_once_with_its_own_parameters():
    """By brute force over a space of few choices, the tokens of Mobile-Former among them."""
    first, second = (dict(stage.kinds) for stage in hybrid.SMALL.stages[1:])
    entry = Either.of(mb4d=Repeat(Stem(convs=1), MB4D(2), 32, 1), mobilevit=first["mobilevit"])
    read = dataclasses.replace(first["mobileformer"], body=Mobile(3, 3), depth=1, bridges=True)
    late = Either.of(mobileformer=read, **{kind: second[kind] for kind in ("mb3d", "shuffle", "mobilevit")})
    space = dataclasses.replace(hybrid.SMALL, stages=(entry, late))
    products = itertools.product(*(choice.values for choice in space.choices.values()))
    archs = {space.arch(dict(zip(space.choices, values, strict=True))) for values in products}
    assert set(space.archs()) == archs
    assert space.count() == len(list(space.archs())) == len(archs)
    assert all(space.arch(space.params_of(arch)) == arch for arch in archs)


def test_another_dim_than_that_of_the_tokens_is_no_shared_value():
    kinds = {
        "stage1_kind": "mb4d",
        "stage2_kind": "mobilevit",
        "stage3_kind": "mobileformer",
        "stage4_kind": "mobilevit",
    }
    arch = first_of(hybrid.SPACE, **kinds, stage2_width=96, tokens=8, dim=192)
    assert [block.dim for block in arch.stages[1] if isinstance(block, MobileViTv1)] == [144]
    found = hybrid.SPACE.params_of(arch)
    assert (found["tokens"], found["dim"]) == (8, 192)
    assert hybrid.SPACE.arch(found) == arch


def test_mobilevit_blocks_read_tokens_of_attention_as_a_map():
    arch = first_of(hybrid.SPACE, stage3_kind="mb3d", stage4_kind="mobilevitv3", stage4_width=160)
    assert any(isinstance(call.row.unit, AsMap) for call in calls_of(arch))
    (call,) = [call for call in calls_of(arch) if isinstance(call.row.unit, MobileViTv3)]
    assert call.row.inputs == ((1, 160, 7, 7),)
    assert call.row.unit.dim == 240
    assert arch in hybrid.SPACE


# Selections


def pruned(space=hybrid.SMALL, keep=50, **wanted):
    """An arch whose last stage is of MB3D blocks alone, tokens dropped before the second half of them."""
    last = f"stage{len(space.stages)}"
    return first_of(
        space, **{f"{last}_kind": "mb3d", f"{last}_keep": keep} | {f"{last}_{k}": v for k, v in wanted.items()}
    )


def macs_of_mb3d(tokens, c, ratio):
    """q, k and v and output of 8 heads; scores and sums; MLP."""
    return tokens * c * 8 * (32 + 32 + 2 * 128) + 8 * tokens**2 * (32 + 128) + tokens * 2 * ratio * c * c


def macs_behind_selection(tokens, c, ratio):
    """The same with as many channels in all heads as the tokens have."""
    return tokens * 4 * c * c + 2 * tokens**2 * c + tokens * 2 * ratio * c * c


def macs_of_prediction(tokens, c):
    """Linear maps from C to C, to C / 2, to C / 4 and to 2 channels."""
    return tokens * (c * c + c * c // 2 + c * c // 8 + c // 2)


@pytest.mark.parametrize(("keep", "left"), [(50, 24), (70, 34)])
def test_later_blocks_run_on_fewer_tokens_and_cost_less(keep, left):
    arch, whole = (pruned(hybrid.SPACE, percent, depth=4, attention=4, width=448) for percent in (keep, 100))
    tokens = [call.row.inputs[0] for call in calls_of(arch)]
    assert tokens[-6:-1] == [(1, 49, 448), (1, 49, 448), (1, left, 448), (1, left, 448), (1, left, 448)]
    saved = 2 * macs_of_mb3d(49, 448, 2) - macs_of_prediction(49, 448) - 2 * macs_behind_selection(left, 448, 2)
    assert cost_of(whole).macs - cost_of(arch).macs == saved > 0


def test_what_is_pruned_by_nothing_is_no_other_arch():
    assert pruned(keep=50, depth=3, attention=1) == pruned(keep=100, depth=3, attention=1)
    assert pruned(keep=50, depth=1, attention=3) == pruned(keep=100, depth=1, attention=1)
    arch = pruned(keep=50, depth=3, attention=3)
    assert arch != pruned(keep=100, depth=3, attention=3)
    found = hybrid.SMALL.params_of(arch)
    assert [found[f"stage3.{name}"] for name in ("kind", "keep", "depth", "attention")] == ["mb3d", 50, 3, 3]


def best(count):
    """In place of `draw`: keeps the tokens that inference would."""

    def decide(scores, *before):
        assert not before
        margin = scores[..., 0] - scores[..., 1]
        return torch.zeros_like(margin).scatter(1, margin.topk(count, 1).indices, 1.0)

    return decide


def masked(network):
    """Training mode, but with the statistics of batch norms as they are."""
    network.train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    return network


def test_masked_and_gathered_tokens_give_the_same_outputs_when_the_mask_is_the_same(monkeypatch):
    network = lively(build(pruned(depth=4, attention=4))).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gathered = network.eval()(x)
        deployed = fuse(network)(x)
        monkeypatch.setattr(dynamicvit._Prune, "draws", True)
        monkeypatch.setattr(dynamicvit, "draw", best(8))  # half of 4 x 4 tokens
        hidden = torch.stack(masked(network)(x)).mean(0)  # of two classifiers
        monkeypatch.setattr(dynamicvit._Prune, "draws", True)
        monkeypatch.setattr(dynamicvit, "draw", best(16))
        everything = torch.stack(network(x)).mean(0)
    assert_close(hidden, gathered, 1e-5)
    assert_close(deployed, gathered, 1e-5)
    assert (everything - gathered).abs().max() > 1e-2 * gathered.abs().max()


def test_a_loss_on_the_decisions_teaches_the_scores(monkeypatch):
    monkeypatch.setattr(dynamicvit._Prune, "draws", True)
    network = build(pruned(depth=2, attention=2)).train()
    streams = {"x": torch.randn(4, 3, 32, 32)}
    for stage in network.stages:
        for block in stage:
            block.advance(streams)
    assert streams["kept"].shape == (4, 1, 16)
    assert set(streams["kept"].unique().tolist()) <= {0.0, 1.0}
    (streams["kept"].mean() - 0.5).square().backward()
    (module,) = [block for block in network.stages[2] if isinstance(block.block, BarePrune)]
    assert module.body.score[2].body.weight.grad.abs().max() > 0


def test_the_mean_behind_a_selection_is_over_the_kept_tokens_alone():
    module = randomize(PrunedPooled().build(Shape(2, 5, 8), Shape(2, 0, 5))).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 1, 1, 0]]).double()
    with torch.no_grad():
        got = module.train()(x, kept.unsqueeze(1))
        for image, chosen in enumerate(([0, 2], [1, 2, 3])):
            assert_close(got[image], module.norm(x)[image, chosen].mean(0), 1e-9)


def test_there_are_no_features_behind_a_selection():
    with pytest.raises(InputError, match="it drops tokens"):
        build(pruned(depth=2, attention=2), features_only=True)
    assert build(pruned(keep=100, depth=2, attention=2), features_only=True).feature_info.reduction() == [2, 4, 8]


# Shuffle


@pytest.mark.parametrize("inputs", [(1, 16, 96), (1, 96, 4, 4)])
def test_macs_of_a_shuffled_block_are_those_of_its_half_of_the_channels(inputs):
    row = Row(ShuffledMB3D(4), (Shape(*inputs),))
    assert macs_of_unit(row) == macs_of_mb3d(16, 48, 4)
    assert calls_of_unit(row).outputs == ((1, 16, 96),)


def test_a_shuffled_block_is_an_mb3d_on_the_attended_channels_interleaved_with_the_idle_ones():
    shape = Shape(2, 16, 16)
    shuffled = lively(ShuffledMB3D(2, "plain").module(shape)).double().eval()
    plain = MB3D(2).module(Shape(2, 16, 8)).double().eval()
    values = iter(shuffled.state_dict().values())
    plain.load_state_dict({name: next(values) for name in plain.state_dict()})
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = shuffled(x)
        assert_close(got[:, :, 0::2], plain(x[:, :, :8]), 1e-9)
        assert torch.equal(got[:, :, 1::2], x[:, :, 8:])
        assert_close(fuse(shuffled)(x), got, 1e-9)


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(InputError, match="even number of channels"):
        ShuffledMB3D(2).build(Shape(1, 16, 15))
