"""Parts of spaces and spaces at other sides, against lists of every network."""

import random
from dataclasses import replace

import pytest

import search_spaces
from nas.core.arch import calls_of
from nas.core.errors import InputError
from nas.core.ops import one_of
from nas.core.parts import at_side, holding, loosened
from nas.core.space import Either, Space
from nas.tables.records import scope_of, space_of
from search_spaces import efficientformer as ef
from search_spaces import mobileformer, nextvit
from search_spaces.mobileformer import Mobile
from search_spaces.nextvit import Groups
from tests.core.test_space import MIXED, all_archs, mixed
from tests.small import TINY

MOBILE = mobileformer.SMALL
CASES = {
    "a kind": (MIXED, {"stage1.kind": ["mb4d"]}),
    "a kind and a width that not every kind has": (MIXED, {"stage2.kind": ["mb3d", "nextvit"], "stage2.width": [48]}),
    "a width that leaves out a kind": (MIXED, {"stage1.width": [32]}),
    "what is shared": (MIXED, {"tokens": [3]}),
    "what is shared, of networks that have it": (MIXED, {"tokens": [1, 3], "stage1.kind": ["mobileformer"]}),
    "a width of tokens that not every number of them has": (MIXED, {"dim": [16]}),
    "places of widths": (mixed(rise=1), {"stage2.width": [48]}),
    "places of widths that stay": (mixed(rise=0, settle=None), {"stage1.width": [16, 24], "stage2.width": [48]}),
    "a tail": (TINY, {"tail": [2]}),
    "no tail": (TINY, {"tail": [0]}),
    "tails with a gap": (TINY, {"tail": [0, 3]}),
    "a tail and a depth": (TINY, {"tail": [1, 3], "stage4.depth": [2]}),
    "a width below others": (TINY, {"stage4.width": [32], "stage2.ratio": [4]}),
    "a width above others": (TINY, {"stage2.width": [32]}),
    "a family with rising widths": (MOBILE, {"stage2.width": [48], "tokens": [1, 6]}),
    "on or off": (MOBILE, {"stage2.bridges": [False], "stage1.depth": [1, 3]}),
}


def has(space, arch, name, params):
    """Whether a network has a choice, told from its blocks and kinds alone."""
    stage, _, choice = name.rpartition(".")
    if not stage:
        return name == "tail" or any(choice in block.names() for blocks in arch.stages for block in blocks)
    laid = space.stages[int(stage.removeprefix("stage")) - 1]
    if not isinstance(laid, Either) or choice == "kind":
        return True
    kind = dict(laid.kinds)[params[f"{stage}.kind"]]
    return choice in kind.choices or choice in kind.fixed


@pytest.fixture(params=sorted(CASES))
def case(request):
    """A space, a part of it, and the networks of that by filtering a list of all."""
    space, fix = CASES[request.param]
    kept = set()
    for arch in all_archs(space) if space is not MOBILE else space.archs():
        params = space.params_of(arch)
        if all(params[name] in values for name, values in fix.items() if has(space, arch, name, params)):
            kept.add(arch)
    assert 0 < len(kept) < space.count()
    return space, fix, kept


def test_a_part_holds_exactly_the_networks_that_have_these_values(case):
    space, fix, kept = case
    part = holding(space, fix)
    listed = list(part.archs())
    assert set(listed) == kept
    assert len(listed) == part.count() == len(kept)
    assert set(part.rows()) == {call.row for arch in kept for call in calls_of(arch)}
    assert part.name == space.name
    for name, choice in part.choices.items():
        assert set(choice.values) <= set(fix.get(name, space.choices[name].values))


def test_networks_of_a_part_are_drawn_changed_and_told_by_parameters(case):
    space, fix, kept = case
    part, rng = holding(space, fix), random.Random(1)
    for _ in range(60):
        arch = part.sample(rng)
        assert arch in kept
        assert part.arch(part.params_of(arch)) == arch
    if len(kept) > 1:
        assert {part.mutate(arch, rng) for arch in list(kept)[:30]} <= kept
    outside = next(arch for arch in space.archs() if arch not in kept)
    assert outside not in part


def test_a_part_of_a_part_is_the_part_of_both():
    fix = {"stage1.kind": ["mb4d"], "stage2.width": [48], "tokens": [1, 2]}
    at_once, in_turn = holding(MIXED, fix), MIXED
    for name, values in fix.items():
        in_turn = holding(in_turn, {name: values})
    assert set(in_turn.archs()) == set(at_once.archs())
    assert in_turn.held == at_once.held


def test_values_may_be_text_and_single():
    assert holding(MIXED, {"tokens": "2", "stage1.bridges": "true"}).held == (
        ("tokens", (2,)),
        ("stage1.bridges", (True,)),
    )
    assert holding(MIXED, {"tokens": 2}) is holding(MIXED, {"tokens": ["2"]})
    assert holding(MIXED, {}) is MIXED


@pytest.mark.parametrize(
    ("fix", "said"),
    [
        ({"stage1.knd": "mb4d"}, "unknown choice 'stage1.knd', did you mean 'stage1.kind'"),
        ({"stage1.kind": "mb5d"}, "stage1.kind: expected one or several of mb4d, mobileformer; got 'mb5d'"),
        ({"tokens": [1, 9]}, "tokens: expected one or several of 1, 2, 3; got 9"),
        ({"tokens": []}, "tokens: expected one or several of 1, 2, 3; got none"),
        ({"stage2.kind": "nextvit", "stage2.width": 48}, "has stage2.kind=nextvit stage2.width=48 together; leave one"),
        ({"tokens": 3, "dim": 16}, "has tokens=3 dim=16 together"),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_can(fix, said):
    with pytest.raises(InputError) as caught:
        holding(MIXED, fix)
    assert said in str(caught.value)


def test_widths_that_cannot_follow_each_other_leave_nothing():
    with pytest.raises(InputError, match=r"stage2.width=32 stage3.width=16 together"):
        holding(TINY, {"stage2.width": 32, "stage3.width": 16})


def test_each_choice_that_is_held_can_be_loosened():
    part = holding(MIXED, {"stage1.kind": "mb4d", "tokens": [1, 2]})
    free = loosened(part)
    assert list(free) == ["stage1.kind=mb4d", "tokens=1,2"]
    assert set(free["stage1.kind=mb4d"].archs()) == set(holding(MIXED, {"tokens": [1, 2]}).archs())
    assert loosened(MIXED) == {}


@pytest.mark.parametrize(("space", "side"), [(TINY, 64), (TINY, 40), (MIXED, 32), (holding(MIXED, {"tokens": 1}), 32)])
def test_at_another_side_rows_and_counts_are_those_of_its_networks(space, side):
    found = at_side(space, side)
    archs = list(found.archs())
    assert found.count() == len(archs) == space.count()
    assert {arch.input_shape for arch in archs} == {(3, side, side)}
    assert set(found.rows()) == {call.row for arch in archs for call in calls_of(arch)}
    assert {arch.stages for arch in archs} == {arch.stages for arch in space.archs()}


def test_the_own_side_is_the_space_itself():
    assert at_side(TINY, 32) is TINY


def test_a_shipped_space_at_another_side_is_named_by_tables_and_commands():
    found = search_spaces.load("mobileformer-32", 64)
    assert found.count() == search_spaces.load("mobileformer-32").count()
    assert space_of(scope_of(found)) == found
    assert search_spaces.spelled(found) == "mobileformer-32 --side 64"
    assert search_spaces.spelled(search_spaces.load("mobileformer-32")) == "mobileformer-32"


def test_a_side_that_does_not_divide_is_refused_with_ones_that_may():
    pooled = Groups(32, 1, 1, "H", 50, 2, 2, sr=2, start=ef.Stem(16, convs=1))
    space = Space("pooled", (3, 16, 16), 5, (pooled,), nextvit.HEAD)
    assert at_side(space, 24).count() == space.count()
    with pytest.raises(InputError, match=r"side 20: NTB .* does not take 1x32x5x5.*; try 16 or 24"):
        at_side(space, 20)


def test_a_choice_that_a_network_does_not_have_does_not_keep_it_out():
    part = holding(MOBILE, {"stage2.kernel": 5})
    without = {arch for arch in MOBILE.archs() if not any(isinstance(block, Mobile) for block in arch.stages[1])}
    kernels = {block.kernel for arch in part.archs() for block in arch.stages[1] if isinstance(block, Mobile)}
    assert without
    assert without <= set(part.archs())
    assert kernels == {5}


def test_a_space_whose_tails_have_gaps_is_no_declaration():
    with pytest.raises(InputError, match="tail"):
        replace(TINY, tail=one_of(0, 2))
