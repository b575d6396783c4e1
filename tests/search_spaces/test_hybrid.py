from __future__ import annotations

import random

import pytest
import torch

import search_spaces
from nas.arch import calls_of, steps_of
from nas.blocks import AsMap
from nas.building import build, cost_of
from search_spaces import hybrid
from search_spaces.efficientformer import MB3D
from search_spaces.mobileformer import BridgeIn, Former, Mobile, MobileDown, Tokens
from search_spaces.nextvit import NCB, NTB

FITTING = [
    *("efficientformer-l1", "efficientformer-l3", "efficientformer-l7"),
    *("nextvit-s", "nextvit-b", "nextvit-l"),
    *("mobileformer-508m", "mobileformer-294m"),
]


def first_of(space, **wanted):
    """The arch of every first value, but for those named: `stage2_kind` for `stage2.kind`."""
    params = {name: choice.values[0] for name, choice in space.choices.items()}
    return space.arch(params | {name.replace("_", ".", 1): value for name, value in wanted.items()})


@pytest.mark.parametrize("name", FITTING)
def test_a_published_network_is_a_point_with_its_published_cost(name):
    preset = search_spaces.presets()[name]
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
    assert (len(space.stages) - 1, NTB) in seen


def test_the_head_is_that_of_the_last_stage():
    heads = {
        kind: [type(block).__name__ for block in first_of(hybrid.SMALL, stage3_kind=kind).stages[-1]]
        for kind in hybrid.SMALL.choices["stage3.kind"].values
    }
    assert heads == {
        "mb4d": ["Pooled", "Logits"],
        "mb3d": ["Pooled", "Logits"],
        "nextvit": ["NextPooled", "Logits"],
        "mobileformer": ["BridgeIn", "WidePooled", "Joined", "Logits"],
        "inverted": ["NextPooled", "Logits"],
    }
